# Everything runs in .venv, which the first command makes; `make PYTHON=python3.12 demo` picks the interpreter.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check install extras bench clean

demo: .venv/installed
	$(BIN)/python -m scripts.compare docs/demo/demo.toml --output runs/demo

test: .venv/installed
	$(BIN)/python -m pytest -q -n 2

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

bench: .venv/installed
	$(BIN)/python -m scripts.bench env
	$(BIN)/python -m scripts.bench ppo

install: .venv/installed

# Ray, Optuna, MO-Gymnasium, ONNX Runtime and OpenVINO: the tests that need them are skipped without.
extras: .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-extras.txt

# torch comes first and alone: any other package that asks for it would pull a build of its own choice.
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf .venv runs

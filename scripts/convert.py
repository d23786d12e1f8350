"""Convert what earlier versions saved to the format of this version: runs, result lines, experiment files.

    python -m scripts.convert runs/compare
    python -m scripts.convert runs/compare --trust-pickle
    python -m scripts.convert ablation.toml

Options and keys get their present names, files get checksums, which show damage, and policies lose their pickles.
Numbers, routes, and the identities of runs and backbones do not change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents import outcomes
from agents.options import read_toml
from agents.policies import FILE
from agents.results import EXPERIMENT, RESULT, line_text
from agents.runs.experiment import experiment_of
from agents.runs.folders import CONFIG
from agents.sb3.policy import ARCHIVE, read_archive, save_model
from backbone.checkpoint import add_checksum, load_tensors, save_tensors, write_atomically
from backbone.checksums import checked_json
from backbone.names import parse_call
from scripts.cli import clear_errors

RENAMED = {
    # keys of options, tasks and experiment files
    "checks": "num_evals",
    "always_on": "ungated_blocks",
    "assignments": "allocations",
    "arms": "variants",
    "answer": "criterion",
    "price": "cost_coef",
    "price_rate": "multiplier_lr",
    "price_anneal": "multiplier_anneal",
    "price_schedule": "multiplier_schedule",
    "price_knots": "multiplier_knots",
    # kinds of saved policies
    "assignment": "allocation",
    # roles of methods; "cotrained" is an entry of its own now
    "network": "activation_gating",
    "rerun": "second_inference",
    "cotrained": "policy",
    # files of a run
    "decisions.npz": outcomes.FILE,
}
"""Present names by the names in earlier versions."""
METHODS_OWN = {"rloo": {"price": "multiplier_init"}}
"""The same, where a method has another name for it than the others."""
FIXED_WEIGHTS = {
    "accuracy_minus_cost": 0.5,
    "cross_entropy_minus_cost": 0.5,
    "probability_minus_cost": 0.5,
    "dfs": 0.045,
    "blockdrop": 1.0,
}
"""The weight of cost by default in earlier versions; what is not given is left to the learner now."""
SECOND_INFERENCE = "cascade_finetuned"
"""A method that is not a policy, whose role was "cotrained" in earlier versions."""
UNSEEDED = ("constant", "early_layers", "oracle")
"""Methods that no seed changes; lines of version 2 do not say so themselves."""
PATTERNS = (ARCHIVE, "*.safetensors", "decisions.npz", outcomes.FILE, RESULT, "results*.jsonl", CONFIG, EXPERIMENT)
"""Files that are rewritten in folders."""


@dataclass(frozen=True)
class Convert:
    """What to rewrite."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders, with all that is in them, or files."""
    trust_pickle: bool = False
    """Unpickle policies (policy.ALGORITHM.zip), which can run any code: only for runs that you made."""


def convert(args: Convert) -> int:
    """Rewrite, and count the files that were not as this version writes them."""
    done = 0
    for file in (file for path in args.paths for file in _files(path)):
        if file.match(ARCHIVE):
            if not args.trust_pickle:
                raise ValueError(f"{file} is pickled, and can run any code: give --trust-pickle if you made that run")
            save_model(file.parent, read_archive(file))
            file.unlink()
            done += 1
        elif file.suffix == ".safetensors":
            done += add_checksum(file) | _rename_kind(file)
        else:
            done += _rewrite(file)
    return done


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name folders of runs, or files")
    if not path.is_dir():
        yield path
        return
    for pattern in PATTERNS:
        yield from sorted(path.rglob(pattern))


def _rewrite(file: Path) -> bool:
    """Whether the file was not as this version writes it."""
    before, to = file.read_bytes(), file.with_name(RENAMED.get(file.name, file.name))
    if file.suffix == ".npz":
        after = outcomes.with_comment(before)
    elif file.name == CONFIG:
        after = (json.dumps(renamed_config(json.loads(before)), indent=1) + "\n").encode()
    elif file.suffix in (".json", ".jsonl"):
        texts = [before] if file.suffix == ".json" else filter(bytes.strip, before.splitlines())
        after = "".join(line_text(renamed_line(_parsed(text, file))) for text in texts).encode()
    elif file.suffix == ".toml":
        after = renamed_experiment(before.decode(), file).encode()
    else:
        raise ValueError(
            f"{file} is not a file that this command converts: name folders of runs, result lines or TOML files"
        )
    if after == before and to == file:
        return False
    write_atomically(to, after)
    if file.suffix == ".npz":
        outcomes.read_outcomes(to.parent)  # an error names what is damaged
    if to != file:
        file.unlink()
    return True


def _parsed(text: bytes, file: Path) -> dict[str, Any]:
    line = checked_json(text, file, "delete this result and run it again")
    if not (isinstance(line, dict) and {"method", "role", "config"} <= line.keys()):
        raise ValueError(f"{file} has a line that is no result line of this project: delete it")
    return line


def renamed_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A result line with the names of this version: "method" without the preset, which used to be the label."""
    found = {**line, "config": renamed_config(line["config"])}
    if "label" not in line:
        method, _, preset = line["config"]["method"].partition("-")
        role = "second_inference" if method == SECOND_INFERENCE else RENAMED.get(line["role"], line["role"])
        found |= {"method": method, "preset": preset, "label": line["method"], "role": role}
        found |= {"cotrained": line["role"] == "cotrained", "seeded": line.get("seeded", method not in UNSEEDED)}
    return found


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration with the names of this version; it still says by which version the run was made."""
    found = {"options" if key == "config" else key: value for key, value in config.items()}
    found["method"] = str(found["method"]).partition("-")[0]
    names = RENAMED | METHODS_OWN.get(found["method"], {})
    for part in ("options", "task"):
        found[part] = {names.get(key, key): value for key, value in found[part].items()}
    return found


def renamed_experiment(text: str, file: Path) -> str:
    """An experiment file with the names of this version; its comments stay."""
    text = re.sub(r"^baseline_budgets\s*=\s*\[[^\]]*\].*\n", "", text, flags=re.M)
    if re.search(r"^\s*\[\[arms\]\]", text, re.M):  # else its rewards are those of this version already
        text = re.sub(
            r"""^(\s*reward\s*=\s*)(["'])(.*?)\2""",
            lambda found: f'{found[1]}"{renamed_reward(found[3])}"',
            text,
            flags=re.M,
        )
    text = "".join(map(_renamed_table, re.split(r"^(?=\s*\[)", text, flags=re.M)))
    content = read_toml(file, text)
    if "parts" in content:
        raise ValueError(f"{file} has [[parts]]: make each a file of its own, which may begin with extends = ...")
    if "extends" not in content:
        try:
            experiment_of(content)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return text


def _renamed_table(text: str) -> str:
    """One table of an experiment file, its head included."""
    method = re.search(r"""^\s*method\s*=\s*["'](\w+)""", text, re.M)
    names = RENAMED | METHODS_OWN.get(method[1] if method else "", {})
    key = re.compile(r"^(\s*(?:\[\[)?)(\w+)(?=\]\]|\s*=)", re.M)
    return key.sub(lambda found: found[1] + names.get(found[2], found[2]), text)


def renamed_reward(reward: str) -> str:
    """A reward of an earlier version, whose weight of cost was fixed unless it was "price", as this version names it:
    a coefficient that is given is fixed, one that is left out is learned."""
    name, parameters = parse_call("reward", reward)
    weight = parameters.pop("weight", FIXED_WEIGHTS[name]) if name in FIXED_WEIGHTS else "price"
    coefficient = {} if weight == "price" else {"cost_coef": weight}
    given = ", ".join(f"{key}={value}" for key, value in {**coefficient, **parameters}.items())
    return {"priced": "cross_entropy_minus_cost"}.get(name, name) + (f"({given})" if given else "")


def _rename_kind(file: Path) -> bool:
    """Whether the policy in a file was of a kind that has another name now."""
    if file.name != FILE:
        return False
    tensors, about = load_tensors(file)
    if about["kind"] not in RENAMED:
        return False
    save_tensors(file, tensors, {**about, "kind": RENAMED[about["kind"]]})
    return True


def start() -> None:
    """Run the command line."""
    with clear_errors():
        print(f"files rewritten: {convert(tyro.cli(Convert, description=__doc__))}")


if __name__ == "__main__":
    start()

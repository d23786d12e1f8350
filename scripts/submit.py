"""Enter a result into the leaderboard: a finished run, or a CSV file with one route for each test image.

    python -m scripts.submit runs/dfs-budget0.05-seed0-1a2b3c4d
    python -m scripts.submit routes.csv --board Digits --name "my gate" --budget 0.05 --gate-macs 5000
    python -m scripts.submit

Either is evaluated here, on the board's test images. The entry, with every image's route, is put into the folder
`entries` next to the page, and the page is written anew from all entries. Without a source only the page is written.

A CSV file has the columns image, block0, block1, ...: the number of a test image, and the action at each decision (an
index into the bitwidths; where a cascade accepts or continues, 0 or 1). Every image is in it once, in any order.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from agents.evaluation import SelfMeasured, evaluate, evaluate_routes, mdp_of
from agents.results import expanded
from agents.runs.saved import load_run
from backbone.checkpoint import fingerprint, write_atomically
from backbone.names import nearest
from backbone.torch_state import use_threads
from dfs_env.registration import ENVIRONMENTS
from dfs_env.task import Task, make_task, untabled
from scripts.cli import clear_errors
from scripts.reporting.comparison import Comparison
from scripts.reporting.networks import HULL, by_dataset
from scripts.reporting.sources import read_comparisons
from scripts.reporting.stats import UNKNOWN, UpperHull
from scripts.reporting.tables import LEGEND, Table, marked_difference, with_interval

BOARDS = {
    name.removeprefix("DFS/").removesuffix("-v0"): task for name, task in ENVIRONMENTS.items() if "table" not in task
}
"""The boards: registered environments, by their names without prefix and version."""
INTRODUCTION = f"""# Leaderboard

Each board is a registered environment. Entries are ordered by their difference to the static hull of their data set, in
points of test accuracy at equal MBitOps, with the gate's own work included. Static networks, which the hull is made of,
come last. Policies must not use the labels of test images. {HULL}

Enter a run by `python -m scripts.submit RUN`, and send the changed files as a pull request. Entries hold every image's
route ([entries](leaderboard/entries)). A test runs those of the boards on digits again, and compares this page with
all.
"""


@dataclass(frozen=True)
class Submit:
    """Enter a result into the leaderboard."""

    source: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a finished run, or a CSV file of routes."""
    board: str = ""
    """The board, such as "Digits" or "CIFAR10-Cascade"; by default that of the run's network."""
    name: str = ""
    """What the leaderboard calls it; by default the run's method. Entries of the same name differ in budget or seed."""
    budget: float | None = None
    """Of a CSV file: fraction of full execution that it was to stay within."""
    seed: int = 0
    """Of a CSV file: of the policy's training."""
    gate_macs: float | None = None
    """Of a CSV file: the policy's own multiply-accumulates (float32) for an image; 0 for given routes."""
    output: Path = Path("docs")
    """Folder of leaderboard.md."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""
    trust_code: bool = False
    """Import what the run names from installed packages: only for runs that you made."""


def network_of(task: Task) -> dict[str, Any]:
    """What two tasks must share so that their results can be compared."""
    networks = untabled(task)
    return {
        "data set": networks.dataset.name,
        "number of test images": len(task.dataset.split("test")),
        "weights": [
            fingerprint(each.backbone.state_dict().values(), each.backbone.config) for each in networks.mdp.stages
        ],
        "bitwidths": list(task.mdp.bitwidths),
        "ungated blocks": task.mdp.ungated_blocks,
        "views": list(getattr(task.mdp, "views", [])),
        "combined prediction": getattr(task.mdp, "combine", None),
    }


def board_of(task: Task, wanted: str, data: str | None) -> tuple[str, Task]:
    """The board whose network a task has, and the board's own task.

    Raises:
        ValueError: none has; says what differs.
    """
    dataset, found, differs = task.dataset.source, network_of(task), ""
    for name in [wanted] if wanted else [each for each, given in BOARDS.items() if given["dataset"] == dataset]:
        try:
            own = board_task(name, data)
        except FileNotFoundError:
            if wanted:
                raise
            continue  # a network that nobody has trained
        other = network_of(own)
        if found == other:
            return name, own
        key = next(key for key, value in other.items() if value != found[key])
        differs += f"; {name} differs in {key}" + f" ({other[key]}, not {found[key]})" * (key != "weights")
    raise ValueError(f"the run is on no board's network{differs}")


def board_task(name: str, data: str | None) -> Task:
    """The task of a board, played on its network.

    Raises:
        ValueError: no such board.
    """
    if name not in BOARDS:
        raise ValueError(f"there is no board {name!r}{nearest(name, list(BOARDS))}: give --board with its name")
    return make_task(**{key: value for key, value in BOARDS[name].items() if key != "budget"}, data=data)


def read_routes(file: Path, images: int, layers: int, actions: list[int]) -> Tensor:
    """The routes [N, L] of a CSV file.

    Args:
        file: the CSV file.
        images: N.
        layers: L, the decisions of an image.
        actions: how many actions there are at each decision [L].

    Raises:
        ValueError: an image is missing or twice, or an impossible action; the line is named.
    """
    heads = ["image", *(f"block{layer}" for layer in range(layers))]
    routes = torch.full((images, layers), -1)
    with file.open(newline="") as text:
        rows = csv.reader(text)
        if (first := next(rows, [])) != heads:
            raise ValueError(f"{file}: the first line must be {','.join(heads)}, got {','.join(first)[:200]}")
        for number, row in enumerate(rows, 2):
            if len(row) != len(heads) or not all(each.strip().isdecimal() for each in row):
                raise ValueError(f"{file}, line {number}: {len(heads)} whole numbers are needed, got {','.join(row)}")
            image, *route = map(int, row)
            if image >= images or routes[image, 0] >= 0:
                problem = "occurs twice" if image < images else f"is not among the {images} test images"
                raise ValueError(f"{file}, line {number}: image {image} {problem}")
            for layer, action in enumerate(route):
                if action >= actions[layer]:
                    raise ValueError(
                        f"{file}, line {number}: action {action} at block{layer} must be below {actions[layer]}"
                    )
            routes[image] = torch.tensor(route)
    missing = (routes[:, 0] < 0).nonzero().squeeze(1).tolist()
    if missing:
        raise ValueError(f"{file}: {len(missing)} of {images} images are missing, the first of them image {missing[0]}")
    return routes


def enter_run(args: Submit, folder: Path, place: Path) -> list[Path]:
    """Evaluate a run at each budget that it serves, and write the entries into `place`.

    Raises:
        ValueError: an option of files of routes; it is a bound or on no board's network, or has not decided block by
            block.
    """
    unfit = [name for name in ("budget", "gate_macs", "seed") if getattr(args, name) != getattr(Submit, name)]
    if unfit:
        raise ValueError(f"--{unfit[0].replace('_', '-')} is for a file of routes: a run says it itself")
    policy, task, result = load_run(folder, data=args.data, trust_code=args.trust_code)
    if result["role"] == "bound":
        raise ValueError(f"{folder} is a bound, which uses what no policy has: the leaderboard is of policies")
    board, own = board_of(task, args.board, args.data)
    name, written = args.name or str(result["label"]), []
    for line in expanded([result]):
        found = evaluate(policy, task, "test", line["budget"])
        if isinstance(policy, SelfMeasured) or not found.routes.numel():
            raise ValueError(f"{folder} has no route of an image, and the leaderboard is of routes")
        played = mdp_of(policy, task)
        if (routes := played.block_routes(found.routes)).shape != found.routes.shape:
            theirs = policy.mdp_on(own.mdp) if hasattr(policy, "mdp_on") else own.mdp
            found = evaluate_routes(theirs, own, "test", routes, gate_macs=found.gate_macs)
        written.append(found.write_line(place / board, name, own, line["budget"], line["seed"]))
    return written


def enter_routes(args: Submit, file: Path, place: Path) -> list[Path]:
    """Evaluate a file of routes, and write its entry into `place`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: an option is missing or impossible; see `read_routes`, too.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: give the folder of a finished run, or a file of routes")
    absent = [name for name in ("board", "name", "budget", "gate_macs") if getattr(args, name) in (None, "")]
    if absent:
        raise ValueError(f"a file of routes needs {', '.join('--' + each.replace('_', '-') for each in absent)}")
    assert args.gate_macs is not None
    assert args.budget is not None
    if not 0 <= args.gate_macs < math.inf:
        raise ValueError(f"gate_macs {args.gate_macs} must be a finite number, 0 or more")
    task = board_task(args.board, args.data)
    layers = range(task.mdp.num_layers)
    actions = [2 if layer in task.mdp.accept_layers else task.mdp.num_actions for layer in layers]
    routes = read_routes(file, len(task.dataset.split("test")), len(layers), actions)
    found = evaluate_routes(task.mdp, task, "test", routes, gate_macs=args.gate_macs)
    return [found.write_line(place / args.board, args.name, task, args.budget, args.seed)]


def page(folder: Path) -> str:
    """The leaderboard in Markdown, from the entries in `folder`/leaderboard/entries."""
    boards = sorted(each for each in (folder / "leaderboard" / "entries").glob("*") if each.is_dir())
    comparisons = read_comparisons(boards)
    hulls = {each.name: networks.hull for networks in by_dataset(comparisons) for each in networks.comparisons}
    parts = [INTRODUCTION]
    for each in comparisons:
        parts += [f"## {each.name}", f"`DFS/{each.name}-v0`: {each.network}.", table(each, hulls[each.name]).markdown()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(board: Comparison, hull: UpperHull) -> Table:
    """A board, the greatest difference to the static hull first; static networks last, each once, by ascending
    MBitOps."""
    networks = {(row.label, row.mean("bitops")): row for row in reversed(board.summaries) if row.static}
    static = sorted(networks.values(), key=lambda row: row.mean("bitops"))
    found = [(row.difference(hull, "bitops").estimate, row) for row in board.summaries if not row.static]
    found.sort(key=lambda pair: math.inf if math.isnan(pair[0].value) else -pair[0].value)
    found += [(UNKNOWN.estimate, row) for row in static]
    rows = [
        [
            row.label,
            f"{row.budget:g}",
            str(len(row.lines)),
            with_interval(row.accuracy),
            f"{1e-6 * row.mean('bitops'):.1f}",
            f"{row.mean('cost'):.4f}",
            marked_difference(gain),
        ]
        for gain, row in found
    ]
    heads = ("entry", "budget", "seeds", "accuracy %", "MBitOps", board.cost_name)
    return Table((*heads, "difference to the static hull"), rows, f"Interquartile mean over seeds. {LEGEND}")


def main(args: Submit) -> None:
    """Enter what is given, and write the page."""
    use_threads(1)
    if args.source:
        enter = enter_run if args.source.is_dir() else enter_routes
        for entry in enter(args, args.source, args.output / "leaderboard" / "entries"):
            print(f"wrote {entry.parent}")
    file = args.output / "leaderboard.md"
    write_atomically(file, page(args.output))
    print(f"wrote {file}")


def start() -> None:
    """Run the command line."""
    with clear_errors():
        main(tyro.cli(Submit, description=__doc__))


if __name__ == "__main__":
    start()

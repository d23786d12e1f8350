"""Many runs, by any engine, and results that survive a kill."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.results import RESULT, RESULTS, Line, line_text, read_lines
from agents.runs.config import VERSION, RunConfig
from agents.runs.engines import Engine, Report, work
from agents.runs.folders import ERROR, finished_folders, locked
from agents.runs.run import result_line
from backbone.checkpoint import write_atomically


@dataclass(frozen=True)
class Sweep:
    """What became of a list of runs."""

    results: list[dict[str, Any]]
    """Result lines of the finished runs, in the order they were asked for."""
    failed: list[Path]
    """Files with the traceback of each run that failed."""


def sweep(
    configs: Sequence[RunConfig],
    root: Path,
    engine: Engine,
    report: Report | None = None,
    wanted: Container[str] | None = None,
) -> Sweep:
    """Do the runs that are not in `root` yet, and write all result lines to `root`/results.jsonl after each.

    The longest begin first, so that none of them is still at work when all others are done. A run that fails leaves its
    traceback in its own folder and does not stop the others.

    Args:
        configs: the runs.
        root: folder of runs.
        engine: where they are done.
        report: called with "started", "done", "failed" or "image", and how many more there are.
        wanted: the names of the runs that are done if they are not there; by default all.

    Raises:
        ValueError: see `finished`.
        OSError: `root` cannot be written, or the disk is full; finished runs are kept.
    """
    report = report or (lambda kind, count: None)
    lines, failed = finished(configs, root), list[Path]()

    def write_results() -> list[dict[str, Any]]:
        results = [lines[config.name] for config in configs if config.name in lines]
        write_atomically(root / RESULTS, "".join(map(line_text, results)))
        return results

    results = write_results()
    missing = (each for each in configs if each.name not in lines and (wanted is None or each.name in wanted))
    # a bound's search of all test images is the longest
    waiting = sorted(missing, key=lambda each: (each.config.role == "bound", work(each)), reverse=True)
    with closing(engine(waiting, root, report)) as ended:  # if this fails, no more are begun
        for config, ok in ended:
            report("done" if ok else "failed", 1)
            if ok:
                lines[config.name] = result_line(config, root / config.name)
                results = write_results()
            else:
                failed.append(root / config.name / ERROR)
    return Sweep(results, failed)


def sole_writer(root: Path) -> AbstractContextManager[None]:
    """Keep other comparisons from writing to the same folder of runs, see `locked`."""
    error = f"another comparison is writing to {root}: wait for its end, or choose another folder with --output"
    return locked(root / ".lock", error)


def finished(configs: Sequence[RunConfig], root: Path) -> dict[str, dict[str, Any]]:
    """The result lines of the runs that are in `root` already, by the names of the runs; of runs whose folders were
    not kept, those in `root`/results.jsonl.

    Raises:
        ValueError: `root` holds results of another version, a damaged one, or lines that would be lost: their runs are
            not among `configs`, and have no folder.
    """
    _check_version(root)
    folders, alone = finished_folders(root), _lines_by_identity(root)
    if stray := alone.keys() - folders.keys() - {config.identity for config in configs}:
        raise ValueError(
            f"{root / RESULTS} has the only record of {len(stray)} runs that are not in this experiment: choose "
            "another --output, or move that file away"
        )
    lines = {each.name: {**alone[each.identity], **each.names} for each in configs if each.identity in alone}
    return lines | {
        each.name: result_line(each, folders[each.identity]) for each in configs if each.identity in folders
    }


def _lines_by_identity(root: Path) -> dict[str, Line]:
    file = root / RESULTS
    lines = read_lines(file) if file.is_file() and file.read_bytes().strip() else []
    return {str(line.get("run", number)).rpartition("-")[2]: line for number, line in enumerate(lines)}


def _check_version(root: Path) -> None:
    combined = root / RESULTS
    texts = [file.read_bytes() for file in sorted(root.glob(f"*/{RESULT}"))]
    texts += combined.read_bytes().splitlines() if combined.is_file() else []
    for text in texts:
        try:
            version = json.loads(text)["config"]["version"]
        except (ValueError, KeyError, TypeError):
            continue  # damaged, which is an error where it is used
        if version != VERSION:
            raise ValueError(
                f"{root} holds results of version {version}, but this is version {VERSION}, with other results for "
                "the same options: choose another folder with --output, or delete that one; to report or evaluate its "
                f"runs, python -m scripts.convert {root}"
            )

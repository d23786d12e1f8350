"""Draw accuracy over cost, and who runs which block at how many bits, from result lines.

    python -m scripts.plot runs/digits --output figure.png

Reads what finished runs have written and never loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.runs.results import read_lines
from scripts.cli import clear_errors
from scripts.reporting.comparison_figure import plot


@dataclass(frozen=True)
class Plot:
    """Draw the figure of a comparison."""

    source: Annotated[Path, tyro.conf.Positional]
    """A comparison's folder (its results.jsonl, else every result.json below it), or a file of result lines."""
    output: Path = Path("figure.png")
    """File to write; its ending says what kind: png, pdf, svg."""


def main(args: Plot) -> None:
    """Read, draw, save."""
    plot(read_lines(args.source), args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Plot, description=__doc__))

"""Whether the top-level packages of dfs-env are its own. Another distribution (openai-agents) and many a user's folder
have an `agents` too: of two that are installed, the second overwrites the first; of two on the path, the first is
imported.

Importing this module checks `backbone`, without which nothing works, and warns of a foreign `agents`, without which the
environments work. Commands check all packages.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Where this package lies, and the others next to it."""
MARK = b"dfs-env"
"""In the docstring of each package of this project."""
REMEDY = (
    "If it is a file of your own, rename it. If another distribution installed it (openai-agents has an `agents`), "
    "install dfs-env into an environment of its own: python -m venv FOLDER"
)


def foreign(name: str) -> str | None:
    """Where a new process would import `name` from, if that is not this project's package."""
    spec = next((found for finder in sys.meta_path if (found := finder.find_spec(name, None))), None)
    place, own = Path((spec and spec.origin) or "nowhere"), ROOT / name / "__init__.py"
    if place.is_file() and place.resolve() == own and MARK in own.read_bytes():
        return None
    return str(place)


def check_packages(*names: str) -> None:
    """Check that packages are this project's.

    Raises:
        ImportError: one is not; it says what to do.
    """
    for name in names:
        if place := foreign(name):
            raise ImportError(f"`{name}` is imported from {place}, which is not of dfs-env. {REMEDY}")


check_packages("backbone")
if place := foreign("agents"):
    warnings.warn(
        f"`agents` is imported from {place}, which is not of dfs-env: environments work, but the methods, evaluation "
        f"and commands of dfs-env do not. {REMEDY}",
        stacklevel=2,
    )

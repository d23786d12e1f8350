"""Digests inside files: what is read is what was written, or it is refused by name.

They detect damage, not forgery: whoever changes a file on purpose can compute its digest anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

KEY = "digest"
"""Of the digest in JSON."""
PREFIX = "content-sha256:"
BLANK = PREFIX + "0" * 64
"""Stands in content where `with_digest` puts the digest."""
_DIGEST = re.compile(PREFIX.encode() + rb"([0-9a-f]{64})")
_REMAINS = re.compile(rb"content-sha|256:[0-9a-f]{64}")
"""Either end of a digest: where only one is left, the digest itself is damaged."""


def with_digest(content: bytes) -> bytes:
    """`content`, with the SHA-256 of all of it in place of its first `BLANK`."""
    return content.replace(BLANK.encode(), f"{PREFIX}{hashlib.sha256(content).hexdigest()}".encode(), 1)


def check_digest(content: bytes, place: object, mend: str) -> str | None:
    """The digest that `with_digest` put into `content`, in hexadecimal; None where there is none.

    Raises:
        ValueError: the content is not what was written; the message names `place` and ends with `mend`.
    """
    found = _DIGEST.search(content)
    if found is None and not _REMAINS.search(content):
        return None
    whole = found and content[: found.start()] + BLANK.encode() + content[found.end() :]
    if not (found and whole) or hashlib.sha256(whole).hexdigest().encode() != found[1]:
        raise ValueError(f"{place} is damaged: its content does not have the SHA-256 that was written with it; {mend}")
    return found[1].decode()


def json_with_digest(content: Mapping[str, Any]) -> str:
    """A JSON object on one line, with its digest as the first entry."""
    return with_digest(json.dumps({KEY: BLANK} | dict(content) | {KEY: BLANK}).encode()).decode()


def checked_json(text: bytes, place: object, mend: str) -> Any:
    """The JSON in `text`, without its digest. Text without one is taken as it is: people write and edit JSON, too.

    Raises:
        ValueError: no JSON, or not what was written; the message names `place` and ends with `mend`.
    """
    check_digest(text.removesuffix(b"\n"), place, f"{mend}, or, if you changed it yourself, remove its {KEY!r}")
    try:
        content = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f"{place} is not JSON ({error}); {mend}") from error
    if isinstance(content, dict):
        content.pop(KEY, None)
    return content

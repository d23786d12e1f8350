"""Checksums inside files: a file whose content has changed raises an error that names it.

They detect damage, not forgery: whoever changes a file on purpose can compute its checksum anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

CHECKSUM_KEY = "digest"
"""The key of the checksum in JSON."""
CHECKSUM_PREFIX = "content-sha256:"
BLANK_CHECKSUM = CHECKSUM_PREFIX + "0" * 64
"""Stands in content where `with_checksum` puts the checksum."""
_CHECKSUM = re.compile(CHECKSUM_PREFIX.encode() + rb"([0-9a-f]{64})")
_DAMAGED_CHECKSUM = re.compile(rb"content-sha|256:[0-9a-f]{64}")
"""Either end of a checksum: where only one is left, the checksum itself is damaged."""


def with_checksum(content: bytes) -> bytes:
    """`content`, with the SHA-256 of all of it in place of its first `BLANK_CHECKSUM`."""
    return content.replace(
        BLANK_CHECKSUM.encode(), f"{CHECKSUM_PREFIX}{hashlib.sha256(content).hexdigest()}".encode(), 1
    )


def verify_checksum(content: bytes, place: object, mend: str) -> str | None:
    """The checksum that `with_checksum` put into `content`, in hexadecimal; None where there is none.

    Raises:
        ValueError: the content has changed; the message names `place` and ends with `mend`.
    """
    found = _CHECKSUM.search(content)
    if found is None and not _DAMAGED_CHECKSUM.search(content):
        return None
    blanked = found and content[: found.start()] + BLANK_CHECKSUM.encode() + content[found.end() :]
    if not (found and blanked) or hashlib.sha256(blanked).hexdigest().encode() != found[1]:
        raise ValueError(f"{place} is damaged: its content does not have the SHA-256 that was written with it; {mend}")
    return found[1].decode()


def json_with_blank_checksum(content: Mapping[str, Any]) -> str:
    """A JSON object on one line, whose first entry `with_checksum` makes a checksum."""
    return json.dumps({CHECKSUM_KEY: BLANK_CHECKSUM} | dict(content) | {CHECKSUM_KEY: BLANK_CHECKSUM})


def json_with_checksum(content: Mapping[str, Any]) -> str:
    """A JSON object on one line, with its checksum as the first entry."""
    return with_checksum(json_with_blank_checksum(content).encode()).decode()


def checked_json(text: bytes, place: object, mend: str) -> Any:
    """The JSON in `text`, without its checksum. Text without one is accepted, since people write and edit JSON, too.

    Raises:
        ValueError: not JSON, or changed content; the message names `place` and ends with `mend`.
    """
    how = f"{mend}, or, if you changed it yourself, remove its {CHECKSUM_KEY!r}"
    verify_checksum(text.removesuffix(b"\n"), place, how)
    try:
        content = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f"{place} is not JSON ({error}); {mend}") from error
    if isinstance(content, dict):
        content.pop(CHECKSUM_KEY, None)
    return content

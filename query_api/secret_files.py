"""Secrets out of files: beside RXSTORE_NAME there is RXSTORE_NAME_FILE, the path of a file that holds the value.

So the environment, which other processes and crash reports may show, names only where a secret is. No message here
has any of the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SUFFIX = "_FILE"
LARGEST_BYTES = 65_536


def value_of(environment: Mapping[str, str], name: str) -> str | None:
    """Return the value of a variable, or what the file of its second form holds; None when neither is set.

    Raises ValueError with both names when both are set, and as ``read`` does.
    """
    given, path = environment.get(name), environment.get(name + SUFFIX)
    if given and path:
        raise ValueError(f"{name} and {name}{SUFFIX} are both set: leave one away")
    return read(name + SUFFIX, path) if path else given or None


def read(name: str, path: str) -> str:
    """Return the content without the newline at its end; ValueError names the variable and what is wrong."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name} names {path}, which cannot be read: {error.strerror}") from None
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{name} names {path}, which is not text in UTF-8") from None
    if not text or len(content) > LARGEST_BYTES or "\n" in text or "\0" in text:
        raise ValueError(f"{name} names {path}, which must hold one line: the value and nothing else")
    return text

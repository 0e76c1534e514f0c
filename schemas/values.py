"""Values that nobody changes and that cost little to make.

``@dataclass(frozen=True)`` sets every field through ``object.__setattr__``, which takes seven times as long as setting
it, and a worker makes some ten values for each event. Here mypy says that they are frozen and the interpreter does not
ask (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(*, order: bool = False) -> Callable[[type[T]], type[T]]:
    """Make a class of values with equality, hash and slots; frozen as far as mypy sees."""
    return dataclass(slots=True, unsafe_hash=True, order=order)

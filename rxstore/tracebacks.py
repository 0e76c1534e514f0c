"""Where an error came from, without what it says.

A message of the database quotes the row that it refuses, one of a decoder the bytes that it cannot read: patients' data
either way, and standard error ends up in logs.
"""

from __future__ import annotations

import sys
import threading
import traceback
from types import TracebackType


def trace(error: BaseException) -> str:
    """Return the traceback of an error, and before it those of what it came from, with types in place of messages."""
    told = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(error.__traceback__))
    sqlstate = getattr(error, "sqlstate", None)
    told += f"{type(error).__module__}.{type(error).__qualname__}" + (f" {sqlstate}" if sqlstate else "")
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told if before is None else f"{trace(before)}\n\nwhich led to\n\n{told}"


def hide_messages() -> None:
    """Let nothing that this process or one of its threads ends with be shown with its message."""
    sys.excepthook = _end_of_process
    threading.excepthook = _end_of_thread


def _end_of_process(kind: type[BaseException], error: BaseException, step: TracebackType | None) -> None:
    print(trace(error), file=sys.stderr)


def _end_of_thread(ending: threading.ExceptHookArgs) -> None:
    if ending.exc_value is not None and not isinstance(ending.exc_value, SystemExit):
        name = "a thread" if ending.thread is None else ending.thread.name
        print(f"{name} ended:\n{trace(ending.exc_value)}", file=sys.stderr)

"""Errors that a person can cause or mend, one class for each exit code.

Each message is one sentence that names the thing, with the next step behind it: ``rxstore: `` is put before it and
nothing after it.
"""

from __future__ import annotations


class RxstoreError(Exception):
    """Ends the command with its message as one line, and with ``exit_code``."""

    exit_code: int = 1


class WrongUse(RxstoreError):
    """An unknown option, or a setting that is missing, malformed or unknown."""

    exit_code = 2


class ServerUnavailable(RxstoreError):
    """A database or broker that cannot be reached or refuses; nothing was changed."""

    exit_code = 3


class Refused(RxstoreError):
    """Not done, to protect the data; the message says what to do instead."""

    exit_code = 4

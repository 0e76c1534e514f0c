"""Errors that a person can cause or mend, one class for each exit code.

Each message is one sentence that names the thing, with the next step behind it: ``rxstore: `` is put before it and
nothing after it.
"""

from __future__ import annotations

import sys


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


def explained(error: BaseException) -> RxstoreError | None:
    """The same error in our words when it is one of a database or broker; ``None`` when it is a bug.

    A library that was never imported cannot have raised it, so none is imported to find out.
    """
    if isinstance(error, RxstoreError):
        return error
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's errors
    if "projector.roles" in sys.modules and (said := _roles_error(cause)) is not None:
        return ServerUnavailable(said)
    if "psycopg" in sys.modules and (said := _database_error(cause)) is not None:
        return ServerUnavailable(said)
    if "kafka" in sys.modules and (said := _broker_error(cause)) is not None:
        return ServerUnavailable(said)
    return None


def _roles_error(error: BaseException) -> str | None:
    from projector.roles import RolesMissing

    return str(error) if isinstance(error, RolesMissing) else None


def _database_error(error: BaseException) -> str | None:
    from psycopg import Error, InterfaceError, OperationalError, errors

    if not isinstance(error, Error):
        return None
    first_line = str(error).partition("\n")[0].strip()
    if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName):
        return "the database does not have the tables of rxstore: run `rxstore migrate` first"
    if isinstance(error, errors.LockNotAvailable):
        return (
            "another session of the database holds what this needs, and does not let go of it: nothing was changed; "
            "try again, and see 'rxstore diagnose' when it stays so"
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return f"the database refuses: {first_line}; check the user in RXSTORE_DATABASE_URL"
    if isinstance(error, OperationalError | InterfaceError):
        return f"the database cannot be reached: {first_line}; check RXSTORE_DATABASE_URL and that it is running"
    return None


def _broker_error(error: BaseException) -> str | None:
    from kafka.errors import AuthorizationError, KafkaError, SaslAuthenticationFailedError

    if not isinstance(error, KafkaError):
        return None
    if isinstance(error, AuthorizationError | SaslAuthenticationFailedError):
        return (
            f"the brokers refuse: {error}; check RXSTORE_KAFKA_SASL_USERNAME and what that user may do "
            "(docs/operators/kafka-security.md)"
        )
    return f"the brokers do not do it: {error}; check RXSTORE_KAFKA_BOOTSTRAP_SERVERS and that they are running"

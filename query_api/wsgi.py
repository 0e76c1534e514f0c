"""For a WSGI server of one's own: ``gunicorn 'query_api.wsgi:application()'``. ``rxstore serve`` does the same.

This is where the API reads its environment; nothing happens at import time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from psycopg import ProgrammingError

from query_api import secret_files, trail
from query_api.app import Api, create_app
from query_api.database import read_only_engine
from query_api.settings import ApiSettings, fixed_clock, utc_now
from query_api.trail import AuditSettings

AUDIT_FILES = ("RXSTORE_AUDIT_PUBLIC_KEY_FILE", "RXSTORE_AUDIT_HASH_KEY_FILE", "RXSTORE_AUDIT_ANCHOR_FILE")
MOST_SECONDS = 1_000_000


class InvalidSetting(ValueError):
    """A setting is absent or has a value that it cannot have; the message names it."""


def application(environment: Mapping[str, str] = os.environ) -> Api:
    """The API as the environment asks for it; called in each worker process, so that none shares a connection."""
    try:
        url = secret_files.value_of(environment, "RXSTORE_DATABASE_URL")
    except ValueError as error:
        raise InvalidSetting(str(error)) from None
    if not url:
        raise InvalidSetting(
            "RXSTORE_DATABASE_URL is not set: postgresql://user:password@host/database, or RXSTORE_DATABASE_URL_FILE "
            "with the path of a file that holds it"
        )
    try:
        engine = read_only_engine(url)
    except ProgrammingError:
        # The driver's own words would have parts of the password.
        raise InvalidSetting("RXSTORE_DATABASE_URL must be postgresql://user:password@host/database") from None
    audit = audit_settings(environment)
    return create_app(
        engine,
        settings=api_settings(environment),
        audit=None if audit is None else trail.start(audit, url)[0],
    )


def audit_settings(environment: Mapping[str, str]) -> AuditSettings | None:
    """Where the audit trail goes, None where none is kept."""
    if not _is(environment, "RXSTORE_AUDIT", "on", "off"):
        return None
    files = {name: environment.get(name) for name in AUDIT_FILES}
    missing = [name for name, file in files.items() if not file]
    if missing:
        raise InvalidSetting(f"RXSTORE_AUDIT is on, and {', '.join(missing)} not set")
    try:
        return AuditSettings(*(Path(file) for file in files.values() if file)).checked()
    except ValueError as error:
        raise InvalidSetting(f"RXSTORE_AUDIT is on, and {error}") from error


def api_settings(environment: Mapping[str, str]) -> ApiSettings:
    """The choices about answers that the environment makes."""
    return ApiSettings(
        clock=_clock(environment),
        empty_search="empty-list"
        if _is(environment, "RXSTORE_EMPTY_SEARCH", "empty-list", "not-found")
        else "not-found",
        require_user=_is(environment, "RXSTORE_REQUIRE_USER", "yes", "no"),
        ready_max_age_seconds=_seconds(environment, "RXSTORE_READY_MAX_AGE_SECONDS"),
        only_registered=_is(environment, "RXSTORE_CLIENTS", "registered", "any"),
        strict_check_character=not _is(environment, "RXSTORE_CHECK_CHARACTER", "lenient", "strict"),
    )


def _clock(environment: Mapping[str, str]) -> Callable[[], datetime]:
    now = environment.get("RXSTORE_NOW")
    try:
        return fixed_clock(now) if now else utc_now
    except ValueError:
        raise InvalidSetting("RXSTORE_NOW must be an RFC 3339 instant with an offset") from None


def _seconds(environment: Mapping[str, str], name: str) -> float | None:
    given = environment.get(name)
    if not given:
        return None
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given) <= MOST_SECONDS:
        raise InvalidSetting(f"{name} must be a whole number from 1 to {MOST_SECONDS}")
    return float(given)


def _is(environment: Mapping[str, str], name: str, value: str, default: str) -> bool:
    given = environment.get(name) or default
    if given not in {value, default}:
        raise InvalidSetting(f"{name} must be {default} or {value}")
    return given == value

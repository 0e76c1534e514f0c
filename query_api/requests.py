"""A tracker request becomes a question, or is refused with the lowest status code that fits.

The checks of each function stand in the order of their codes, 50 to 61. No code names a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import falcon

from query_api import clients
from query_api.clients import Gate
from query_api.queries import SearchCriteria
from query_api.settings import ApiSettings
from schemas.identifiers import (
    InvalidPrescriptionId,
    is_asid,
    is_nhs_number,
    is_role_profile_id,
    is_trace_id,
    is_user_id,
    parse_prescription_id,
)
from schemas.vocabulary import ISSUE_STATUS_SEARCH, TrackerStatus

DEFAULT_WINDOW = timedelta(days=28)
VERSIONS = frozenset({"1", "1.0"})
RELEASES = {"1": "R1", "R1": "R1", "2": "R2", "R2": "R2"}
NO_SUCH_ISSUE = 0

_is_eight_digits = re.compile(r"[0-9]{8}").fullmatch
# Two digits are enough for the highest issue number there can be.
_is_issue_number = re.compile(r"0*[1-9][0-9]?").fullmatch


class Refused(Exception):
    """The request breaks a rule; ``status`` is the tracker's code for it."""

    def __init__(self, status: str) -> None:
        super().__init__(f"refused with status code {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class RetrieveCriteria:
    """Which prescription, by stream key, and which issue of it: None for the current one."""

    stream_key: str
    issue_number: int | None


def search_criteria(request: falcon.Request, settings: ApiSettings, gate: Gate) -> SearchCriteria:
    """What a search asks for."""
    if not request.params:
        raise Refused(TrackerStatus.NO_PARAMETERS)
    _check_caller(request, settings, gate, clients.SEARCH)
    earliest, latest = _window(request, settings.clock().astimezone(UTC).date())
    return SearchCriteria(
        earliest=earliest,
        latest=latest,
        status=_status(request),
        release=_release(request),
        nhs_number=_nhs_number(request),
    )


def retrieve_criteria(
    request: falcon.Request, prescription_id: str, settings: ApiSettings, gate: Gate
) -> RetrieveCriteria:
    """Which prescription and issue a retrieve asks for."""
    stream_key = _stream_key(prescription_id, strict=settings.strict_check_character)
    _check_caller(request, settings, gate, clients.RETRIEVE)
    return RetrieveCriteria(stream_key, _issue_number(request))


def trace_id(request: falcon.Request) -> str | None:
    """The caller's trace id if it is a valid one."""
    given = request.get_header("Eps-TraceId")
    return given if given is not None and is_trace_id(given) else None


def format_given(request: falcon.Request, published: str) -> str:
    """Whether the format parameter is the published one, another or missing: worth a note in the log, no more."""
    given = request.params.get("format")
    if not given:
        return "missing"
    return "published" if given == published else "other"


def _check_caller(request: falcon.Request, settings: ApiSettings, gate: Gate, interaction: str) -> None:
    asid = request.get_header("Spine-From-Asid", default="")
    if not is_asid(asid) or not gate.lets_in(request, interaction):
        raise Refused(TrackerStatus.INVALID_ASID)
    if _parameter(request, "version", TrackerStatus.INVALID_VERSION) not in {None, *VERSIONS}:
        raise Refused(TrackerStatus.INVALID_VERSION)
    if request.get_header("Eps-TraceId") is not None and trace_id(request) is None:
        raise Refused(TrackerStatus.INVALID_TRACE_ID)
    user_id = request.get_header("Spine-UserId")
    if not (is_user_id(user_id) if user_id is not None else not settings.require_user):
        raise Refused(TrackerStatus.INVALID_USER_ID)
    role_profile_id = request.get_header("Spine-RoleProfileId")
    if not (is_role_profile_id(role_profile_id) if role_profile_id is not None else not settings.require_user):
        raise Refused(TrackerStatus.INVALID_ROLE_PROFILE_ID)


def _stream_key(prescription_id: str, *, strict: bool) -> str:
    # A plus that was encoded as in a form arrives as a space; nothing else can end in one.
    repaired = f"{prescription_id[:-1]}+" if prescription_id.endswith(" ") else prescription_id
    try:
        return parse_prescription_id(repaired, strict=strict).stream_key
    except InvalidPrescriptionId:
        raise Refused(TrackerStatus.INVALID_PRESCRIPTION_ID) from None


def _window(request: falcon.Request, today: date) -> tuple[datetime, datetime]:
    """Whole UTC days, both included; an earliest day after the latest one is a window in which nothing lies."""
    earliest = _date(request, "earliestDate") or today - DEFAULT_WINDOW
    latest = _date(request, "latestDate") or today
    return datetime.combine(earliest, time.min, UTC), datetime.combine(latest, time.max, UTC)


def _date(request: falcon.Request, name: str) -> date | None:
    given = _parameter(request, name, TrackerStatus.INVALID_SEARCH_DATE)
    if given is None:
        return None
    if not _is_eight_digits(given):
        raise Refused(TrackerStatus.INVALID_SEARCH_DATE)
    try:
        return date(int(given[:4]), int(given[4:6]), int(given[6:]))
    except ValueError:
        raise Refused(TrackerStatus.INVALID_SEARCH_DATE) from None


def _status(request: falcon.Request) -> str | None:
    given = _parameter(request, "prescriptionStatus", TrackerStatus.INVALID_SEARCH_STATE)
    if given is not None and given not in ISSUE_STATUS_SEARCH:
        raise Refused(TrackerStatus.INVALID_SEARCH_STATE)
    return given


def _release(request: falcon.Request) -> str | None:
    given = _parameter(request, "prescriptionVersion", TrackerStatus.INVALID_SEARCH_VERSION)
    if given is not None and given not in RELEASES:
        raise Refused(TrackerStatus.INVALID_SEARCH_VERSION)
    return None if given is None else RELEASES[given]


def _nhs_number(request: falcon.Request) -> str:
    given = _parameter(request, "nhsNumber", TrackerStatus.INVALID_NHS_NUMBER)
    if given is None or not is_nhs_number(given):
        raise Refused(TrackerStatus.INVALID_NHS_NUMBER)
    return given


def _issue_number(request: falcon.Request) -> int | None:
    """Whatever is no issue number asks for an issue that does not exist: the prescription is then still shown."""
    given = request.params.get("issueNumber")
    if not given:
        return None
    return int(given) if isinstance(given, str) and _is_issue_number(given) else NO_SUCH_ISSUE


def _parameter(request: falcon.Request, name: str, status_if_repeated: str) -> str | None:
    """The value of a parameter, None where it is absent or blank; given twice, it is wrong in its own way."""
    given = request.params.get(name)
    if isinstance(given, list):
        raise Refused(status_if_repeated)
    return given or None

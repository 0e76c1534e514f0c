"""The API described in OpenAPI 3.1, assembled from the vocabulary that its answers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from schemas.vocabulary import (
    ISSUE_STATUS_RETRIEVE,
    ISSUE_STATUS_SEARCH,
    LINE_ITEM_STATUS,
    TRACKER_REASON,
    TREATMENT_TYPE,
    TrackerStatus,
)

Schema = dict[str, Any]

TITLE: Final = "rxstore: the EPS prescription tracker"
VERSION: Final = "1.0.0"

SEARCH_CODES: Final = (
    TrackerStatus.SUCCESS,
    TrackerStatus.NOT_FOUND,
    TrackerStatus.FAILED_TO_PARSE,
    TrackerStatus.UNEXPECTED,
    TrackerStatus.NO_PARAMETERS,
    TrackerStatus.INVALID_ASID,
    TrackerStatus.INVALID_VERSION,
    TrackerStatus.INVALID_TRACE_ID,
    TrackerStatus.INVALID_USER_ID,
    TrackerStatus.INVALID_ROLE_PROFILE_ID,
    TrackerStatus.INVALID_SEARCH_DATE,
    TrackerStatus.INVALID_SEARCH_STATE,
    TrackerStatus.INVALID_SEARCH_VERSION,
    TrackerStatus.INVALID_NHS_NUMBER,
)
RETRIEVE_CODES: Final = (
    TrackerStatus.SUCCESS,
    TrackerStatus.NOT_FOUND,
    TrackerStatus.NO_UNIQUE_PRESCRIPTION,
    TrackerStatus.ISSUE_NOT_FOUND,
    TrackerStatus.FAILED_TO_PARSE,
    TrackerStatus.UNEXPECTED,
    TrackerStatus.INVALID_PRESCRIPTION_ID,
    TrackerStatus.INVALID_ASID,
    TrackerStatus.INVALID_VERSION,
    TrackerStatus.INVALID_TRACE_ID,
    TrackerStatus.INVALID_USER_ID,
    TrackerStatus.INVALID_ROLE_PROFILE_ID,
)

_TEXT: Final = {"type": "string"}
_INSTANT: Final = {"type": "string", "pattern": "^[0-9]{14}$", "description": "yyyymmddhhmmss, UTC"}
_INSTANT_OR_FALSE: Final = {"type": "string", "pattern": "^([0-9]{14}|False)$", "description": "yyyymmddhhmmss, UTC"}
_DATE_OR_FALSE: Final = {"type": "string", "pattern": "^([0-9]{8}|False)$", "description": "yyyymmdd, UTC"}
_NUMBER: Final = {"type": "string", "pattern": "^[1-9][0-9]*$"}
_FLAG: Final = {"type": "string", "enum": ["True", "False"]}
_NHS_NUMBER: Final = {"type": "string", "pattern": "^[0-9]{10}$"}
_LOG_POSITION: Final = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,249}:[0-9]{1,9}:[0-9]{1,18}$"}
_SET_ASIDE_STATES: Final = ("open", "parked", "repaired", "retried", "skipped")
_RFC3339: Final = {"type": ["string", "null"], "format": "date-time"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_NUMBER_OR_NULL: Final = {"type": ["integer", "null"]}
_ODS: Final = {"type": "string", "description": "ODS code, False where there is no organisation"}
_UUID: Final = {
    "type": "string",
    "pattern": "^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$",
}


def openapi_document() -> dict[str, Any]:
    """The whole document, as ``/openapi.json`` and ``rxstore contract openapi`` give it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "A tracker path answers GET with HTTP 200 whatever becomes of the question; the member "
            "statusCode of the body tells. Every scalar is a string.",
        },
        "paths": {
            "/mm/prescriptions": {"get": _search()},
            "/mm/prescriptions/{prescription_id}": {"get": _retrieve()},
            "/rxstore/prescriptions/{prescription_id}/history": {"get": _history()},
            "/rxstore/events": {"get": _events()},
            "/rxstore/status": {
                "get": _plain("status", "How far the views are, and how much is set aside", _own(_views_status()))
            },
            "/health/live": {"get": _plain("live", "Whether the process lives", {"200": _json(_live())})},
            "/health/ready": {
                "get": _plain(
                    "ready",
                    "Whether questions can be answered now",
                    {"200": _json(_ready()), "503": _json(_ready(), "Not ready; the reason says what helps")},
                )
            },
            "/metrics": {
                "get": _plain(
                    "metrics",
                    "Metrics in Prometheus' text form",
                    {"200": {"description": "The metrics", "content": {"text/plain": {"schema": _TEXT}}}},
                )
            },
            "/openapi.json": {
                "get": _plain("openapi", "This document", {"200": _json({"type": "object"}, "This document")})
            },
        },
        "components": {
            "schemas": _schemas(),
            "parameters": _headers_of_requests(),
            "headers": _headers_of_answers(),
        },
    }


def _search() -> Schema:
    return {
        "operationId": "search",
        "summary": "A patient's prescriptions",
        "description": "Without dates: from 28 days ago to the end of today. The dates are those of the prescription "
        "time, whole UTC days, both included. A blocked match makes statusCode 4, with the others in the list.",
        "parameters": [
            _query("nhsNumber", "Ten digits with their modulus 11 check digit; 61 when missing or bad", _NHS_NUMBER),
            _query("format", "trace-summary; ignored", _TEXT),
            _query("earliestDate", "yyyymmdd; 57 when bad", {"type": "string", "pattern": "^[0-9]{8}$"}),
            _query("latestDate", "yyyymmdd; 57 when bad", {"type": "string", "pattern": "^[0-9]{8}$"}),
            _query(
                "prescriptionStatus",
                "The status of any of its issues; 59 when unknown",
                {"type": "string", "enum": list(ISSUE_STATUS_SEARCH)},
            ),
            _query(
                "prescriptionVersion",
                "The release; 60 when unknown",
                {"type": "string", "enum": ["1", "2", "R1", "R2"]},
            ),
            *_wait_parameters(),
            *_common_parameters(),
        ],
        "responses": {
            "200": _tracker_answer("SearchAnswer", "Success or failure; statusCode tells", ()),
            **_not_now(),
            "405": {"description": "Any method but GET"},
        },
    }


def _retrieve() -> Schema:
    return {
        "operationId": "retrieve",
        "summary": "One prescription with one of its issues",
        "parameters": [
            {
                "name": "prescription_id",
                "in": "path",
                "required": True,
                "description": "The prescription id, in any letter case, with or without its check character. A plus "
                "may stand as it is or as %2B; 51 when bad",
                "schema": {"type": "string"},
            },
            _query("format", "trace; ignored", _TEXT),
            _query("issueNumber", "The issue to show, by default the current one; 3 when there is none such", _NUMBER),
            *_wait_parameters(),
            *_common_parameters(),
        ],
        "responses": {
            "200": _tracker_answer("RetrieveAnswer", "Success or failure; statusCode tells", ("ETag",)),
            "304": {"description": "The body still has an entity tag of If-None-Match"},
            **_not_now(),
            "405": {"description": "Any method but GET"},
        },
    }


def _history() -> Schema:
    return {
        "operationId": "history",
        "summary": "The story of one prescription: every event, what it changed or why it did not fold, and decisions",
        "parameters": [
            {
                "name": "prescription_id",
                "in": "path",
                "required": True,
                "description": "The prescription id, with or without its check character",
                "schema": {"type": "string"},
            },
            _query(
                "at",
                "RFC 3339: as it was known then, by the timestamps of the records and the times of decisions",
                {"type": "string", "format": "date-time"},
            ),
        ],
        "responses": {
            **_own({"$ref": "#/components/schemas/History"}),
            "404": _problem("Nothing is known of it"),
            "501": _problem("This server cannot read the topic"),
        },
    }


def _events() -> Schema:
    return {
        "operationId": "events",
        "summary": "What became of one event (id), or which events of a publisher are set aside (state)",
        "parameters": [
            {**_query("source", "The CloudEvents source", _TEXT), "required": True},
            _query("id", "The CloudEvents id of one event", _TEXT),
            _query("subject", "With id: its prescription; needed to learn whether it folded", _TEXT),
            _query("position", "With id: topic:partition:offset of one copy of it", _LOG_POSITION),
            _query("state", "Instead of id: the state", {"type": "string", "enum": list(_SET_ASIDE_STATES)}),
            _query("limit", "With state: how many at most, 100 by default", {"type": "integer", "minimum": 1}),
            _query("after", "With state: the cursor of the answer before", _LOG_POSITION),
        ],
        "responses": _own(
            {"oneOf": [{"$ref": "#/components/schemas/EventFate"}, {"$ref": "#/components/schemas/SetAsideEvents"}]}
        ),
    }


def _own(schema: Schema) -> Schema:
    """The answers of a path of ours: plain HTTP codes."""
    return {
        "200": _json(schema),
        "400": _problem("The question breaks a rule"),
        "403": _problem("The caller may not ask this"),
        "405": {"description": "Any method but GET"},
        "429": _not_now()["429"],
        "503": _problem("The database or the broker is away or too slow, or more is asked than can be answered"),
    }


def _problem(description: str) -> Schema:
    return _json({"$ref": "#/components/schemas/Problem"}, description)


def _not_now() -> Schema:
    return {
        "429": _problem("The caller asks too often: again after the seconds of Retry-After"),
        "503": _problem("More is asked than can be answered: again after the seconds of Retry-After"),
    }


def _plain(operation_id: str, summary: str, responses: Schema) -> Schema:
    return {"operationId": operation_id, "summary": summary, "responses": responses}


def _query(name: str, description: str, schema: Mapping[str, Any]) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": name == "nhsNumber",
        "description": description,
        "schema": dict(schema),
    }


def _wait_parameters() -> list[Schema]:
    seconds = {"type": "number", "minimum": 0, "maximum": 10, "default": 5}
    return [
        _query("waitFor", "Answer once the read model has passed this place in the log; else 5", _LOG_POSITION),
        _query("waitSeconds", "With waitFor: for how long", seconds),
    ]


def _common_parameters() -> list[Schema]:
    version = _query("version", "The version of this contract; 53 when another", {"type": "string"})
    version["schema"]["enum"] = ["1", "1.0"]
    return [version, *({"$ref": f"#/components/parameters/{name}"} for name in _headers_of_requests())]


def _headers_of_requests() -> Schema:
    digits = {"type": "string", "pattern": "^[0-9]{12}$"}
    return {
        "Asid": _header("Spine-From-Asid", "The caller's system; 52 when missing or bad", digits, required=True),
        "UserId": _header("Spine-UserId", "55 when bad, or missing where the installation demands it", digits),
        "RoleProfileId": _header("Spine-RoleProfileId", "56 likewise", digits),
        "TraceId": _header(
            "Eps-TraceId",
            "Echoed when valid; 54 when bad",
            {"type": "string", "pattern": "^[0-9A-Za-z-]{1,30}$"},
        ),
    }


def _header(name: str, description: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _headers_of_answers() -> Schema:
    described = {
        "Cache-Control": "no-store",
        "Eps-TraceId": "The caller's trace id, when it is valid",
        "Rxstore-As-Of": "RFC 3339: the answer is known to hold all that had been published by then. Absent when "
        "that is not known",
        "Rxstore-Generation": "The name of the read model that the whole answer comes from",
        "Rxstore-Blocked": "Comma separated ids of prescriptions that would belong to the answer and cannot be shown",
        "Rxstore-Waited": "With waitFor: reached; else not-reached, busy, unknown-partition or malformed, with code 5",
        "ETag": "The SHA-1 of the body in hex, in quotes",
    }
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}


def _tracker_answer(schema: str, description: str, more_headers: tuple[str, ...]) -> Schema:
    names = ("Cache-Control", "Eps-TraceId", "Rxstore-As-Of", "Rxstore-Generation", "Rxstore-Blocked", "Rxstore-Waited")
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, *more_headers)},
        "content": {"application/json; charset=UTF-8": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _json(schema: Schema, description: str = "The answer") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _live() -> Schema:
    return _object({"live": {"const": True}})


def _ready() -> Schema:
    return _object({"ready": {"type": "boolean"}, "reason": {"type": ["string", "null"]}})


def _schemas() -> Schema:
    return {
        "SearchAnswer": {
            "oneOf": [
                _envelope(
                    [TrackerStatus.SUCCESS, TrackerStatus.FAILED_TO_PARSE],
                    "prescriptionList",
                    _map_of("FoundPrescription", "The prescription id"),
                ),
                _failure(SEARCH_CODES, "prescriptions", but=(TrackerStatus.SUCCESS, TrackerStatus.FAILED_TO_PARSE)),
            ]
        },
        "RetrieveAnswer": {
            "oneOf": [
                _envelope(
                    [TrackerStatus.SUCCESS],
                    "prescription",
                    _prescription({"$ref": "#/components/schemas/Issue"}),
                ),
                _envelope([TrackerStatus.ISSUE_NOT_FOUND], "prescription", _prescription(_object({}))),
                _failure(RETRIEVE_CODES, "prescription", but=(TrackerStatus.SUCCESS, TrackerStatus.ISSUE_NOT_FOUND)),
            ]
        },
        "FoundPrescription": _object(
            {
                "prescriptionTreatmentType": _treatment_type(),
                "prescriptionIssueDate": _INSTANT,
                "lastEventDate": _INSTANT,
                "pendingCancellations": _FLAG,
                "currentIssueNumber": _NUMBER,
                "patientNhsNumber": _NHS_NUMBER,
                "issues": _map_of("FoundIssue", "The issue number"),
            }
        ),
        "FoundIssue": _object(
            {
                "issueDate": _DATE_OR_FALSE,
                "prescriptionStatus": _status(ISSUE_STATUS_SEARCH),
                "lineItems": _map_of("FoundLineItem", "The item number"),
            }
        ),
        "FoundLineItem": _object({"status": _status(LINE_ITEM_STATUS)}),
        "Issue": _object(
            {
                "issueNumber": _NUMBER,
                "appliedCancellations": _FLAG,
                "lastDispenseDate": _DATE_OR_FALSE,
                "dispensingOrganisationODS": _ODS,
                "dispensingOrganisationName": _TEXT,
                "dispensingOrganisationContact": _TEXT,
                "prescriptionStatus": _status(ISSUE_STATUS_RETRIEVE),
                "lineItems": _map_of("LineItem", "The item number"),
            }
        ),
        "LineItem": _object({"id": _UUID, "status": _status(LINE_ITEM_STATUS)}),
        "Problem": {"type": "object", "properties": {"title": _TEXT, "description": _TEXT}, "required": ["title"]},
        "History": _history_answer(),
        "Step": _step(),
        "Decision": _decision(),
        "EventFate": _object(
            {
                "source": _TEXT,
                "id": _TEXT,
                "subject": _TEXT_OR_NULL,
                "state": {"enum": ["folded", "duplicate", *_SET_ASIDE_STATES, "not_seen", "not_set_aside"]},
                "version": _NUMBER_OR_NULL,
                "position": _TEXT_OR_NULL,
                "sightings": _list_of(_object(_sighting())),
                "as_of": _RFC3339,
                "note": _TEXT_OR_NULL,
            }
        ),
        "SetAsideEvents": _object(
            {
                "source": _TEXT,
                "state": {"enum": list(_SET_ASIDE_STATES)},
                "events": _list_of(_object({"id": _TEXT_OR_NULL, "subject": _TEXT_OR_NULL, **_sighting()})),
                "after": {**_TEXT_OR_NULL, "description": "The cursor of the next answer; null at the end"},
                "as_of": _RFC3339,
            }
        ),
    }


def _sighting() -> Schema:
    return {
        "position": _LOG_POSITION,
        "state": {"enum": list(_SET_ASIDE_STATES)},
        "reason": _TEXT,
        "errors": _errors(),
        "waiting_for": _TEXT_OR_NULL,
        "type": _TEXT_OR_NULL,
        "since": _RFC3339,
    }


def _errors() -> Schema:
    return _list_of(_object({"path": _TEXT, "message": _TEXT}))


def _views_status() -> Schema:
    partition = {
        "partition": {"type": "integer"},
        "next_offset": {"type": "integer"},
        "moved_at": _RFC3339,
        "caught_up_at": _RFC3339,
    }
    return _object(
        {
            "generation": _TEXT_OR_NULL,
            "definition": _TEXT_OR_NULL,
            "topic": _TEXT_OR_NULL,
            "as_of": _RFC3339,
            "age_seconds": {"type": ["number", "null"]},
            "quarantined": {"type": "integer"},
            "parked": {"type": "integer"},
            "blocked": {"type": "integer"},
            "partitions": _list_of(_object(partition)),
        }
    )


def _history_answer() -> Schema:
    return _object(
        {
            "prescription_id": _TEXT,
            "stream_key": _TEXT,
            "generation": _TEXT,
            "topic": _TEXT,
            "partition": {"type": "integer"},
            "as_of": _RFC3339,
            "at": _RFC3339,
            "deleted": {"type": "boolean"},
            "complete": {"type": "boolean", "description": "Whether the log still has every event of it"},
            "as_stored": {"type": ["boolean", "null"], "description": "Whether the rows are what the events fold to"},
            "steps": _list_of({"$ref": "#/components/schemas/Step"}),
            "state": {"type": ["object", "null"], "description": "How it stands after the steps"},
            "decisions": _list_of({"$ref": "#/components/schemas/Decision"}),
        }
    )


def _step() -> Schema:
    event = {
        "source": _TEXT_OR_NULL,
        "id": _TEXT_OR_NULL,
        "type": _TEXT_OR_NULL,
        "time": _RFC3339,
        "sequence": _NUMBER_OR_NULL,
        "arrived": _RFC3339,
    }
    return _object(
        {
            "position": _LOG_POSITION,
            "outcome": _TEXT,
            "version": _NUMBER_OR_NULL,
            "because_of": _TEXT_OR_NULL,
            "event": {"oneOf": [_object(event), {"type": "null"}]},
            "in_log": {"type": "boolean"},
            "reason": _TEXT_OR_NULL,
            "errors": _errors(),
            "waiting_for": _TEXT_OR_NULL,
            "repairs": _list_of(_LOG_POSITION),
            "changes": _list_of(_object({"path": _TEXT, "before": {}, "after": {}})),
            "decision": {"oneOf": [{"$ref": "#/components/schemas/Decision"}, {"type": "null"}]},
        }
    )


def _decision() -> Schema:
    return _object(
        {
            "decision": {"type": "integer"},
            "action": {"enum": ["retry", "skip"]},
            "id": _LOG_POSITION,
            "why": _TEXT,
            "by": _TEXT,
            "at": _RFC3339,
            "effect_offset": _NUMBER_OR_NULL,
            "revoked_at": _RFC3339,
            "revoked_by": _TEXT_OR_NULL,
        }
    )


def _list_of(schema: Mapping[str, Any]) -> Schema:
    return {"type": "array", "items": dict(schema)}


def _prescription(issue: Schema) -> Schema:
    return _object(
        {
            "prescriptionId": _TEXT,
            "prescriptionType": _object({"prescriptionTypeCode": _TEXT, "prescriptionTypeText": _TEXT}),
            "prescriptionTreatmentType": _treatment_type(),
            "signingDate": _INSTANT_OR_FALSE,
            "lastEventDate": _INSTANT,
            "currentIssueNumber": _NUMBER,
            "daysSupply": _NUMBER,
            "pendingCancellations": _FLAG,
            "patientNhsNumber": _NHS_NUMBER,
            "prescribingOrganisationODS": _ODS,
            "prescribingOrganisationName": _TEXT,
            "prescribingOrganisationContact": _TEXT,
            "nominatedDispenserODS": _ODS,
            "nominatedDispenserName": _TEXT,
            "issue": issue,
        }
    )


def _treatment_type() -> Schema:
    """The code and its text; both are empty for a prescription of which only an early cancellation is known."""
    codes_and_texts = _codes_with_texts(
        TREATMENT_TYPE, "prescriptionTreatmentTypeCode", "prescriptionTreatmentTypeText"
    )
    nothing = {"prescriptionTreatmentTypeCode": {"const": ""}, "prescriptionTreatmentTypeText": {"const": ""}}
    return {"oneOf": [*codes_and_texts, _object(nothing)]}


def _status(texts: Mapping[str, str]) -> Schema:
    return {"oneOf": _codes_with_texts(texts, "statusCode", "statusText")}


def _codes_with_texts(texts: Mapping[str, str], code_key: str, text_key: str) -> list[Schema]:
    return [_object({code_key: {"const": code}, text_key: {"const": text}}) for code, text in texts.items()]


def _failure(codes: tuple[str, ...], payload_key: str, *, but: tuple[str, ...]) -> Schema:
    return _envelope([code for code in codes if code not in but], payload_key, _object({}))


def _envelope(codes: list[str], payload_key: str, payload: Schema) -> Schema:
    return _object(
        {
            "statusCode": {"enum": codes},
            "reason": {"enum": [TRACKER_REASON[code] for code in codes]},
            "version": {"const": "1"},
            payload_key: payload,
        }
    )


def _map_of(schema: str, key: str) -> Schema:
    return {
        "type": "object",
        "description": f"By: {key}",
        "additionalProperties": {"$ref": f"#/components/schemas/{schema}"},
    }


def _object(properties: Mapping[str, Any]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }

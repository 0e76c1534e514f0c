"""Asks what the API would answer, of the live generation or of any other: through the API itself, without a server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import quote

from sqlalchemy import Engine

from projector import generations
from projector.definition import hashes
from projector.generations import Generation
from query_api.app import SEARCH, create_app
from query_api.database import read_only_engine
from query_api.generation import ask_generation
from query_api.settings import ApiSettings, utc_now
from rxstore import store
from rxstore.errors import Refused, ServerUnavailable
from rxstore.settings import Settings
from schemas.vocabulary import TrackerStatus

# Answers do not depend on who asks; the API wants somebody named.
NOBODY = "000000000000"
HAS_TABLES = ("loading", "building", "ready", "live", "previous")


@dataclass(frozen=True, slots=True)
class Answered:
    """The body of the API's answer, byte for byte; the tracker's status code in it; and what the headers said."""

    body: bytes
    code: str
    headers: Mapping[str, str]


def api_settings(settings: Settings, *, present: datetime | None = None) -> ApiSettings:
    """What the settings choose about answers; ``present`` is what the API takes as now if no setting says so."""
    now = settings.now or present
    return ApiSettings(
        clock=utc_now if now is None else lambda: now,
        empty_search=settings.empty_search,
        require_user=settings.require_user,
        ready_max_age_seconds=settings.ready_max_age_seconds,
        strict_check_character=settings.check_character == "strict",
    )


def generation_to_ask(engine: Engine, name: str) -> Generation:
    """Return a generation that can be asked; Refused when its tables are gone or of another shape than ours."""
    store.live_generation(engine)
    with engine.connect() as connection:
        found = generations.find(connection, name)
    if found is None:
        raise Refused(f"there is no generation {name}: 'rxstore status' shows which there are")
    if found.state not in HAS_TABLES:
        raise Refused(
            f"generation {name} is {found.state}, its tables are dropped: 'rxstore rebuild stage' builds another"
        )
    if found.hashes["tables"] != hashes()["tables"]:
        raise Refused(
            f"generation {name} has tables of another shape than this version's (definition {found.definition}): ask "
            "it with the version that made it"
        )
    return found


def prescription(settings: Settings, generation: Generation | None, id_: str, issue: int | None) -> Answered:
    """Ask for one prescription and one of its issues."""
    params = {} if issue is None else {"issueNumber": str(issue)}
    return _ask(settings, generation, f"{SEARCH}/{quote(id_, safe='')}", params)


def search(settings: Settings, generation: Generation | None, params: Mapping[str, str]) -> Answered:
    """Ask for a patient's prescriptions, by the parameters of the API."""
    return _ask(settings, generation, SEARCH, params)


def _ask(settings: Settings, generation: Generation | None, path: str, params: Mapping[str, str]) -> Answered:
    """Ask the API in this process; ServerUnavailable where it could not answer."""
    from falcon import testing  # no server needs it

    logging.getLogger("query_api.metrics").setLevel(logging.WARNING)  # a server's log has a line for every request
    present = None if generation is None else generation.until
    engine = read_only_engine(settings.database(), pool_size=1)
    try:
        if generation is not None:
            ask_generation(engine, generation.name)
        chosen = replace(api_settings(settings, present=present), require_user=False)
        app = create_app(engine, settings=chosen)
        result = testing.simulate_get(app, path, params=dict(params), headers={"Spine-From-Asid": NOBODY})
    finally:
        engine.dispose()
    code = str(result.json["statusCode"])
    if code == TrackerStatus.UNEXPECTED:
        raise ServerUnavailable(
            "the database did not answer: it is away or too slow, or the user in RXSTORE_DATABASE_URL may not read "
            "the tables of the generation"
        )
    return Answered(result.content, code, result.headers)

"""``rxstore serve``: the query API."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import example, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from query_api.app import Api
    from query_api.history import History


@click.command(epilog=example("rxstore serve --insecure --bind 127.0.0.1:8080"))
@click.option("--bind", metavar="HOST:PORT", help="Listen here instead of on RXSTORE_HTTP_BIND.")
@click.option("--insecure", is_flag=True, help="Serve plain HTTP; on a loopback address only.")
@click.option("--workers", type=click.IntRange(min=1, max=64), help="Server processes; one a core by default.")
@with_settings
def command(settings: Settings, bind: str | None, insecure: bool, workers: int | None) -> None:
    """Run the query API.

    It reads the views as the role rxstore_reader and can write nothing. Certificates are not checked yet, so it listens
    on this machine only and wants --insecure said; with RXSTORE_CLIENTS=registered only the ASIDs that 'rxstore
    clients' lists are let in. With RXSTORE_KAFKA_BOOTSTRAP_SERVERS set it also tells the history
    of a prescription, which is read from the topic.
    """
    from query_api import server
    from rxstore import store

    if not insecure:
        raise WrongUse("this version serves plain HTTP only: say --insecure, and put nothing but this machine in front")
    address = bind or str(settings.http_bind)
    try:
        server.check_loopback(address)
    except ValueError as error:
        raise WrongUse(f"{'--bind' if bind else 'RXSTORE_HTTP_BIND'}: {error}") from error
    with store.engine(settings) as engine:
        store.live_generation(engine)
    server.run(_factory(settings), address, workers=workers or os.cpu_count() or 1)


def _factory(settings: Settings) -> Callable[[], Api]:
    def make() -> Api:
        from projector.generations import READER_ROLE
        from query_api.app import create_app
        from query_api.database import read_only_engine
        from rxstore.querying import api_settings

        engine = read_only_engine(settings.database(), role=READER_ROLE)
        return create_app(
            engine,
            settings=replace(api_settings(settings), only_registered=settings.clients == "registered"),
            history=_history(settings, engine),
        )

    return make


def _history(settings: Settings, engine: Engine) -> History | None:
    """The story of a prescription is read from the topic; a server that is not told where that is cannot tell it."""
    from rxstore import story
    from rxstore.fleet import make_reader

    if not settings.kafka_bootstrap_servers:
        return None
    return story.history(engine, lambda: make_reader(settings.kafka()))

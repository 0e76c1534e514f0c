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
    from query_api.trail import Audit, AuditSettings, Writer
    from query_api.transport import Transport


@click.command(
    epilog=example(
        "rxstore serve --bind 0.0.0.0:8443",
        "rxstore serve --behind-proxy --bind unix:/run/rxstore/api.sock",
        "rxstore serve --insecure --bind 127.0.0.1:8080",
    )
)
@click.option("--bind", metavar="HOST:PORT", help="Listen here instead of on RXSTORE_HTTP_BIND; or unix:/PATH.")
@click.option("--insecure", is_flag=True, help="Serve plain HTTP; on a loopback address only.")
@click.option("--behind-proxy", is_flag=True, help="Serve a proxy that ends TLS and hands on the client's certificate.")
@click.option("--workers", type=click.IntRange(min=1, max=64), help="Server processes; one a core by default.")
@with_settings
def command(settings: Settings, bind: str | None, insecure: bool, behind_proxy: bool, workers: int | None) -> None:
    """Run the query API.

    It speaks TLS 1.2 and 1.3 and wants a client certificate of the authority in RXSTORE_TLS_CLIENT_CAFILE. Who is let
    in stands in the register ('rxstore clients'): the ASID must be one for which that certificate is registered.

    With --behind-proxy a proxy ends TLS; with --insecure it is plain HTTP for this machine alone, and any ASID is let
    in unless RXSTORE_CLIENTS is registered.

    With RXSTORE_AUDIT on, a record of every request is committed before its answer leaves ('rxstore audit').

    It reads the views as the role rxstore_reader. With RXSTORE_KAFKA_BOOTSTRAP_SERVERS set it also tells the history
    of a prescription, which is read from the topic.
    """
    from query_api import server
    from rxstore import store

    address, transport = _way_in(settings, bind, insecure=insecure, behind_proxy=behind_proxy)
    with store.engine(settings) as engine:
        store.live_generation(engine)
    audit = _audit(settings, is_kept=(settings.audit or ("off" if insecure else "on")) == "on")
    server.run(
        _factory(settings, audit, by_certificate=transport is not None),
        address,
        transport=transport,
        workers=workers or os.cpu_count() or 1,
        at_end=audit.close,
    )


def _way_in(
    settings: Settings, bind: str | None, *, insecure: bool, behind_proxy: bool
) -> tuple[str, Transport | None]:
    """Where to listen and how callers are known there; no transport for plain HTTP. WrongUse says what does not fit."""
    from query_api import server
    from query_api.transport import Unusable
    from rxstore.settings import UnixSocket, bind_or_socket

    name = "--bind" if bind else "RXSTORE_HTTP_BIND"
    try:
        address = bind_or_socket(bind) if bind else settings.http_bind
        if insecure and behind_proxy:
            raise WrongUse("--insecure and --behind-proxy exclude each other")
        if insecure:
            server.check_loopback(str(address))
            return str(address), None
        is_socket = isinstance(address, UnixSocket)
        if is_socket and not behind_proxy:
            raise WrongUse(f"{name}: a Unix socket is for a proxy: say --behind-proxy, or give HOST:PORT")
        if behind_proxy and not is_socket and not settings.trusted_proxies:
            raise WrongUse(
                "--behind-proxy on HOST:PORT needs the addresses of the proxies in RXSTORE_TRUSTED_PROXIES; a Unix "
                "socket (--bind unix:/run/rxstore/api.sock) does not"
            )
    except ValueError as error:
        raise WrongUse(f"{name}: {error}") from error
    if settings.clients == "any":
        raise WrongUse(
            "RXSTORE_CLIENTS=any is for --insecure: over TLS only clients of the register are let in, so that an ASID "
            "is worth no more than its certificate; leave it out, and see 'rxstore clients add --help'"
        )
    try:
        return str(address), _behind_proxy(settings) if behind_proxy else _mutual_tls(settings)
    except Unusable as error:
        raise WrongUse(f"RXSTORE_TLS_…: {error}") from error


def _mutual_tls(settings: Settings) -> Transport:
    from query_api.transport import MutualTls, TlsFiles

    if not (settings.tls_certfile and settings.tls_keyfile and settings.tls_client_cafile):
        missing = [
            name
            for name in ("RXSTORE_TLS_CERTFILE", "RXSTORE_TLS_KEYFILE", "RXSTORE_TLS_CLIENT_CAFILE")
            if getattr(settings, name.removeprefix("RXSTORE_").lower()) is None
        ]
        raise WrongUse(
            f"{', '.join(missing)} must be set to serve over TLS; plain HTTP, for this machine alone, wants --insecure"
        )
    return MutualTls(
        TlsFiles(settings.tls_certfile, settings.tls_keyfile, settings.tls_client_cafile, settings.tls_crlfile)
    )


def _behind_proxy(settings: Settings) -> Transport:
    from query_api.transport import BehindProxy

    return BehindProxy(settings.trusted_proxies or (), settings.proxy_certificate_header, settings.tls_crlfile)


def _audit(settings: Settings, *, is_kept: bool) -> Auditing:
    """Check that an audit trail can be kept, if one is wanted, before anything is served."""
    from query_api.trail import AuditSettings

    if not is_kept:
        return Auditing(None)
    try:
        return Auditing(
            AuditSettings(
                settings.audit_file("public_key"), settings.audit_file("hash_key"), settings.audit_file("anchor")
            ).checked()
        )
    except ValueError as error:
        raise WrongUse(f"RXSTORE_AUDIT is on, and {error}") from error
    except WrongUse as error:
        if settings.audit is not None:
            raise
        raise WrongUse(
            f"over TLS an audit trail is kept, and {error}; 'rxstore audit keys' makes the keys, RXSTORE_AUDIT=off "
            "goes without"
        ) from error


class Auditing:
    """The audit trail of a server process: begun when its application is made, closed when it ends."""

    def __init__(self, settings: AuditSettings | None) -> None:
        self._settings = settings
        self._writer: Writer | None = None

    def start(self, url: str, role: str) -> Audit | None:
        """Begin it, if one is kept."""
        from query_api import trail

        if self._settings is None:
            return None
        audit, self._writer = trail.start(self._settings, url, role=role)
        return audit

    def close(self) -> None:
        """Write what waits, and end it."""
        if self._writer is not None:
            self._writer.close()


def _factory(settings: Settings, audit: Auditing, *, by_certificate: bool) -> Callable[[], Api]:
    from query_api.rates import Rates

    rates = Rates(settings.rate_limit) if settings.rate_limit else None

    def make() -> Api:
        from projector.generations import READER_ROLE
        from query_api.app import create_app
        from query_api.database import read_only_engine
        from rxstore.querying import api_settings

        engine = read_only_engine(settings.database(), role=READER_ROLE)
        return create_app(
            engine,
            settings=replace(
                api_settings(settings),
                only_registered=by_certificate or settings.clients == "registered",
                by_certificate=by_certificate,
            ),
            history=_history(settings, engine),
            rates=rates,
            audit=audit.start(settings.database(), READER_ROLE),
        )

    return make


def _history(settings: Settings, engine: Engine) -> History | None:
    """The story of a prescription is read from the topic; a server that is not told where that is cannot tell it."""
    from rxstore import story
    from rxstore.fleet import make_reader

    if not settings.kafka_bootstrap_servers:
        return None
    return story.history(engine, lambda: make_reader(settings.kafka()))

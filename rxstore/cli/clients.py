"""``rxstore clients``: who may ask the API what."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from query_api.clients import INTERACTIONS
from rxstore.cli.options import as_json, example, instant, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

ASID = click.argument("asid", metavar="ASID")
CERTIFICATES = click.option(
    "--certificate",
    "certificates",
    multiple=True,
    metavar="FILE|SHA256",
    help="A certificate of it: a PEM file, or its SHA-256 fingerprint; several times for several.",
)
REPLACE = click.option("--replace", is_flag=True, help="Replace what is registered of it, also where it is revoked.")


@click.group(epilog=example("rxstore clients add 200000000946 --contact 'EPS team, eps@example.org'"))
def command() -> None:
    """Who may ask the API what, over TLS and where RXSTORE_CLIENTS is registered.

    Every server looks at the register every two seconds. A client that it does not name, that is revoked, not valid
    now or not registered for what it asks gets code 52, or HTTP 403 on the paths under /rxstore, and nothing is read.
    """


@command.command(
    "add",
    epilog=example(
        "rxstore clients add 200000000946 --contact 'EPS team, eps@example.org'",
        "rxstore clients add 200000000946 --contact 'EPS team' --certificate client.pem",
        "rxstore clients add 200000000947 --contact 'Publishers' --interaction rxstore_events",
    ),
)
@ASID
@click.option("--contact", required=True, help="Whom to ask about it.")
@click.option(
    "--interaction",
    "interactions",
    multiple=True,
    type=click.Choice(INTERACTIONS),
    help="What it may use; several times for several. The tracker's search and retrieve by default.",
)
@CERTIFICATES
@click.option("--subject", help="Subject of its certificates, as RFC 4514 writes it: CN=system.example,O=Example.")
@click.option("--issuer", help="Their issuer, in the same form; given together with --subject.")
@click.option("--valid-from", metavar="TIME", help="From when on; now by default.")
@click.option("--valid-to", metavar="TIME", help="Until when; for good by default.")
@REPLACE
@with_settings
def add(
    settings: Settings,
    asid: str,
    contact: str,
    interactions: tuple[str, ...],
    certificates: tuple[str, ...],
    subject: str | None,
    issuer: str | None,
    valid_from: str | None,
    valid_to: str | None,
    replace: bool,
) -> None:
    """Register a client by its ASID.

    Over TLS it is let in with the certificates named here, or with any whose subject and issuer are named; a client
    without either is not.
    """
    from rxstore import registering, store

    registration = registering.Registration(
        asid,
        contact,
        interactions or registering.PRIMARY_PAIR,
        None if valid_from is None else instant(valid_from, "--valid-from"),
        None if valid_to is None else instant(valid_to, "--valid-to"),
        tuple(map(_fingerprint, certificates)),
        subject,
        issuer,
    ).checked()
    with store.engine(settings) as engine:
        store.live_generation(engine)
        registering.add(engine, registration, who=store.somebody(), anew=replace)
    click.echo(f"client {asid} may use {', '.join(registration.interactions)}")


@command.command("list", epilog=example("rxstore clients list --json > clients.ndjson"))
@as_json
@with_settings
def listed(settings: Settings, as_json: bool) -> None:
    """Every registered client; with --json one object a line, which import reads."""
    from rxstore import registering, store

    with store.engine(settings) as engine:
        store.live_generation(engine)
        found = registering.every(engine)
    _print(found, as_json)


@command.command("show", epilog=example("rxstore clients show 200000000946"))
@ASID
@as_json
@with_settings
def show(settings: Settings, asid: str, as_json: bool) -> None:
    """All that is registered of a client."""
    from rxstore import registering, store

    with store.engine(settings) as engine:
        store.live_generation(engine)
        found = registering.every(engine, asid)
    if not found:
        raise WrongUse(f"there is no client {asid}: 'rxstore clients list' shows which there are")
    _print(found, as_json)


@command.command(
    "certificates",
    epilog=example(
        "rxstore clients certificates 200000000946 --add new.pem",
        "rxstore clients certificates 200000000946 --remove old.pem",
    ),
)
@ASID
@click.option("--add", "added", multiple=True, metavar="FILE|SHA256", help="One that it may use from now on.")
@click.option("--remove", "removed", multiple=True, metavar="FILE|SHA256", help="One that it may use no more.")
@with_settings
def certificates(settings: Settings, asid: str, added: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Change the certificates of a client, so that a new one can be rolled out beside the old one."""
    from rxstore import registering, store

    if bool(added) == bool(removed):
        raise WrongUse("say --add or --remove, and not both")
    change = registering.add_fingerprints if added else registering.remove_fingerprints
    with store.engine(settings) as engine:
        store.live_generation(engine)
        count = change(engine, asid, [_fingerprint(one) for one in added or removed])
    click.echo(f"client {asid} has {count} certificates")


@command.command("revoke", epilog=example("rxstore clients revoke 200000000946 --why 'its key was lost'"))
@ASID
@click.option("--why", required=True, help="Kept with it.")
@with_settings
def revoke(settings: Settings, asid: str, why: str) -> None:
    """Let a client in no more; within seconds on every server."""
    from rxstore import registering, store

    with store.engine(settings) as engine:
        store.live_generation(engine)
        registering.revoke(engine, asid, who=store.somebody(), why=why)
    click.echo(f"client {asid} is revoked")


@command.command("import", epilog=example("rxstore clients import clients.ndjson"))
@click.argument("file", type=click.File("rb"))
@REPLACE
@with_settings
def import_(settings: Settings, file: IO[bytes], replace: bool) -> None:
    """Register the clients of FILE, all of them or none: one JSON object a line, as list --json prints them.

    Members: asid, contact, and if wanted interactions, valid_from, valid_to. Revoked ones are left out.
    """
    from rxstore import registering, store

    registrations = registering.read_registrations(file, file.name)
    with store.engine(settings) as engine:
        store.live_generation(engine)
        count = registering.add_all(engine, registrations, who=store.somebody(), anew=replace)
    click.echo(f"{count} clients registered")


def _fingerprint(given: str) -> str:
    """Return the fingerprint of a PEM file, or the one that was given."""
    from query_api.certificates import Unreadable, from_pem, normal_fingerprint

    path = Path(given)
    try:
        return from_pem(path.read_bytes()).fingerprint if path.is_file() else normal_fingerprint(given)
    except (OSError, Unreadable) as error:
        what = "a file that" if path.is_file() else "neither a file nor a fingerprint:"
        raise WrongUse(f"{given} is {what} cannot be taken as a certificate: {error}") from error


def _print(found: list[dict[str, Any]], as_json: bool) -> None:
    from rxstore import registering

    now = datetime.now(UTC)
    for one in found:
        state = registering.state_of(one, now)
        if as_json:
            click.echo(json.dumps({"state": state, **one}, default=datetime.isoformat))
            continue
        click.echo(f"{one['asid']}  {state}  {one['contact']}")
        click.echo(f"  may use   {', '.join(one['interactions'])}")
        for fingerprint in one["fingerprints"]:
            click.echo(f"  known by  sha256:{fingerprint}")
        if one["subject"] is not None:
            click.echo(f"  known by  {one['subject']}, issued by {one['issuer']}")
        ends = "" if one["valid_to"] is None else f" to {one['valid_to'].isoformat()}"
        click.echo(f"  valid     from {one['valid_from'].isoformat()}{ends}")
        click.echo(f"  added     {one['added_at'].isoformat()} by {one['added_by']}")
        if one["revoked_at"] is not None:
            click.echo(f"  revoked   {one['revoked_at'].isoformat()} by {one['revoked_by']}: {one['revoked_why']}")

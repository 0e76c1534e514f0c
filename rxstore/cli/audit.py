"""``rxstore audit``: who asked the API what."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, instant, stream_key, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

if TYPE_CHECKING:
    from query_api.audit import Record

STANDARD_INPUT = "-"
SHOWN_FAULTS = 100
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog=example("rxstore audit search --asid 200000000946 --since 2026-03-01T00:00:00Z"))
def command() -> None:
    """Who asked the API what: the trail that servers keep over TLS, or with RXSTORE_AUDIT=on; one record a request."""


@command.command(
    "search",
    epilog=example(
        "rxstore audit search --asid 200000000946 --since 2026-03-01T00:00:00Z",
        "rxstore audit search --nhs-number - --json > found.ndjson",
        "rxstore audit search --prescription 3AF2CB-C86002-0000BX --unseal audit-private.key",
    ),
)
@click.option("--asid", metavar="ASID", help="Only what this client asked.")
@click.option("--since", metavar="TIME", help="Only from then on.")
@click.option("--until", metavar="TIME", help="Only from before then.")
@click.option(
    "--nhs-number",
    metavar="NUMBER|-",
    help="Only what was asked or shown of this patient; - reads the number from standard input, where no list of "
    "processes shows it. Needs RXSTORE_AUDIT_HASH_KEY_FILE.",
)
@click.option("--prescription", metavar="ID", help="Only where this prescription was asked for or shown.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the oldest first.")
@click.option(
    "--unseal",
    "private_key_files",
    type=FILE,
    multiple=True,
    metavar="KEYFILE",
    help="Show what was asked, with the private key; several times for keys of several times.",
)
@as_json
@with_settings
def search(
    settings: Settings,
    asid: str | None,
    since: str | None,
    until: str | None,
    nhs_number: str | None,
    prescription: str | None,
    limit: int | None,
    private_key_files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """The records that match, oldest first; with --json one object a line.

    It reads as the user in RXSTORE_DATABASE_URL, who needs the role rxstore_audit.
    """
    from query_api import audit
    from rxstore import auditing, store

    patient = None
    if nhs_number is not None:
        hash_key = auditing.key(settings.audit_file("hash_key"), "hash")
        given = sys.stdin.readline() if nhs_number == STANDARD_INPUT else nhs_number
        patient = audit.patient_hash(hash_key, "".join(given.split()))
    sought = auditing.Sought(
        asid=asid,
        since=None if since is None else instant(since, "--since"),
        until=None if until is None else instant(until, "--until"),
        patient=patient,
        prescription=None if prescription is None else stream_key(prescription),
        limit=limit,
    )
    private_keys = [auditing.key(path, "private") for path in private_key_files]
    with store.engine(settings) as engine:
        for record in auditing.search(engine, sought):
            if as_json:
                click.echo(json.dumps(auditing.as_json(record, private_keys), default=_text))
            else:
                _print(record, audit.unsealed(record.question, private_keys), has_keys=bool(private_keys))


@command.command(
    "verify",
    epilog=example(
        "rxstore audit verify", "rxstore audit verify --anchors audit.ndjson --anchors other-machine.ndjson"
    ),
)
@click.option(
    "--anchors",
    "anchor_files",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="What servers wrote down outside the database (RXSTORE_AUDIT_ANCHOR_FILE): the files of all of them.",
)
@as_json
@click.pass_context
@with_settings
def verify(settings: Settings, ctx: click.Context, anchor_files: tuple[Path, ...], as_json: bool) -> None:
    """Whether every record is there as it was written: exit code 1 when one was changed, removed or inserted.

    Without --anchors it cannot see that the last records of a chain are missing, or a chain as a whole.
    """
    from rxstore import auditing, store

    with store.engine(settings) as engine:
        verified = auditing.verify(engine, anchor_files)
    if as_json:
        faults = [{"chain": str(one.chain), "sequence": one.sequence, "what": one.what} for one in verified.faults]
        click.echo(json.dumps({"records": verified.records, "chains": verified.chains, "faults": faults}))
    else:
        for fault in verified.faults[:SHOWN_FAULTS]:
            click.echo(str(fault))
        if len(verified.faults) > SHOWN_FAULTS:
            click.echo(f"and {len(verified.faults) - SHOWN_FAULTS:,} more: --json tells all")
        wrong = f"{len(verified.faults):,} faults" if verified.faults else "all as they were written"
        click.echo(f"{verified.records:,} records in {verified.chains:,} chains: {wrong}")
        if not anchor_files:
            click.echo("the ends of the chains were not looked at: that needs --anchors", err=True)
    ctx.exit(1 if verified.faults else 0)


@command.command("keys", epilog=example("rxstore audit keys --directory /etc/rxstore/audit"))
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default=".",
    help="Where to write them; it must be there.",
)
def keys(directory: Path) -> None:
    """Make the keys of the audit: a pair that seals questions and opens them again, and one that hashes NHS numbers.

    Servers need the public key and the hash key. Keep the private key away from them: with it one can read what was
    asked.
    """
    from rxstore import auditing

    public, private, hash_ = auditing.make_keys(directory)
    click.echo(f"RXSTORE_AUDIT_PUBLIC_KEY_FILE={public.resolve()}")
    click.echo(f"RXSTORE_AUDIT_HASH_KEY_FILE={hash_.resolve()}")
    click.echo(f"the private key is in {private.resolve()}: take it away from this machine", err=True)


@command.command("retire", epilog=example("rxstore audit retire --before 2024-01-01"))
@click.option("--before", required=True, metavar="DATE", help="Months that had ended when this day began, in UTC.")
@click.option("--unverified", is_flag=True, help="Also where 'rxstore audit verify' finds that they were changed.")
@with_settings
def retire(settings: Settings, before: str, unverified: bool) -> None:
    """Drop the records of whole months, and make the tables of the coming ones.

    What is kept of a dropped month is the last hash of each chain, in the database and in RXSTORE_AUDIT_ANCHOR_FILE, so
    that verify still holds. It runs as the owner of the tables, like migrate.
    """
    from rxstore import auditing, store

    with store.engine(settings) as engine:
        months = auditing.retire(engine, _date(before), settings.audit_file("anchor"), unverified=unverified)
    for month in months:
        click.echo(f"retired {month:%Y-%m}")
    if not months:
        click.echo("no month had ended by then: nothing was retired")


def _date(given: str) -> date:
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise WrongUse("--before takes a day, such as 2024-01-01") from None


def _print(record: Record, question: str | None, *, has_keys: bool) -> None:
    who = record.asid or "no ASID"
    what = record.interaction or "an unknown path"
    code = "" if record.tracker_code is None else f" code {record.tracker_code}"
    at = record.at.astimezone(UTC)
    click.echo(
        f"{at:%Y-%m-%dT%H:%M:%S.%fZ}  {who}  {what}  {record.http_status}{code}  {record.duration_us / 1000:.1f} ms"
    )
    told = {
        "asked": (question or "(sealed for another key)") if has_keys else None,
        "certificate": record.certificate,
        "user": record.user_id,
        "role profile": record.role_profile_id,
        "trace id": record.trace_id,
        "prescription": record.prescription,
        "shown": ", ".join(record.shown),
        "refused": record.refused_by,
        "record": f"{record.chain}:{record.sequence}",
    }
    for name, value in told.items():
        if value:
            click.echo(f"  {name:<12}  {value}")


def _text(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)

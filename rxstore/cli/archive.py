"""``rxstore archive``: the topic in files, so that retention no longer decides what can be rebuilt."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.errors import WrongUse
from rxstore.settings import Settings

if TYPE_CHECKING:
    from ingest.archive import Archive

DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


@click.group(epilog=example("rxstore archive export /archives/prescriptions", "rxstore archive verify /archives/…"))
def command() -> None:
    """The topic in files: exported, verified, and read by a rebuild when the topic has lost its beginning."""


@command.command("export", epilog=example("rxstore archive export /archives/prescriptions"))
@DIRECTORY
@as_json
@with_settings
def export(settings: Settings, directory: Path, as_json: bool) -> None:
    """Write into DIR what the topic has and the archive has not, up to the end of now.

    Run it again, and it goes on where it was, also after it was interrupted. The files hold what was published,
    patients included: keep them where only those may read who may read the topic. With --json: one object a file.
    """
    from rxstore import archiving
    from rxstore.progress import Progress

    files = records = 0
    with Progress("archive export", "records") as progress:
        for file in archiving.export(settings, directory):
            files += 1
            records += file.records
            progress.advance(file.records)
            if as_json:
                click.echo(json.dumps(asdict(file)))
    click.echo(
        f"{records:,} records of {settings.topic} exported to {files} files in {progress.seconds:.1f} s"
        if files
        else f"the archive has all that {settings.topic} has",
        err=as_json,
    )


@command.command("verify", epilog=example("rxstore archive verify /archives/prescriptions"))
@DIRECTORY
@as_json
@with_settings
def verify(settings: Settings, directory: Path, as_json: bool) -> None:
    """Read every file of DIR and compare it with the manifest; exit code 1 when anything is wrong or missing.

    It needs neither brokers nor database.
    """
    from rxstore.progress import Progress

    archive = _opened(directory)
    faults = 0
    with Progress("archive verify", "files", len(archive.files)) as progress:
        for fault in archive.verify(progress.advance):
            faults += 1
            click.echo(json.dumps(asdict(fault)) if as_json else f"{fault.file}: {fault.message}")
    records = sum(file.records for file in archive.files)
    click.echo(
        f"{len(archive.files)} files with {records:,} records of {archive.topic} read in {progress.seconds:.1f} s: "
        f"{f'{faults} faults' if faults else 'whole'}",
        err=True,
    )
    if faults:
        raise click.exceptions.Exit(1)


@command.command("deleted", epilog=example("rxstore archive deleted /archives/prescriptions --json"))
@DIRECTORY
@as_json
@with_settings
def deleted(settings: Settings, directory: Path, as_json: bool) -> None:
    """What DIR still holds of prescriptions that were deleted since: each record, by file and offset.

    A deletion takes a prescription out of the read models, not out of the topic, and not out of an archive. With
    --json: one object a record. It needs neither brokers nor database.
    """
    from ingest.archive import ArchiveBroken
    from rxstore import archiving
    from rxstore.progress import Progress

    archive = _opened(directory)
    offsets: dict[tuple[str, str], list[int]] = {}
    try:
        with Progress("archive deleted", "files", 2 * len(archive.files)) as progress:
            for held in archiving.of_deleted(settings, archive, progress.advance):
                offsets.setdefault((held.stream_key, held.file), []).append(held.offset)
                if as_json:
                    click.echo(json.dumps(asdict(held)))
    except ArchiveBroken as error:
        raise WrongUse(f"{error}: see 'rxstore archive verify'") from error
    if as_json:
        return
    for (stream_key, file), found in sorted(offsets.items()):
        click.echo(f"{stream_key}  {file}  offsets {', '.join(map(str, found))}")
    if not offsets:
        click.echo("the archive holds nothing of a prescription that one of its events deletes")


def _opened(directory: Path) -> Archive:
    from ingest.archive import Archive, ArchiveBroken

    try:
        return Archive.opened(directory)
    except ArchiveBroken as error:
        raise WrongUse(str(error)) from error

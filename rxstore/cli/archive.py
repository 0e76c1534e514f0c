"""``rxstore archive``: the topic in files, so that retention no longer decides what can be rebuilt."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from rxstore.cli.options import as_json, example, with_settings
from rxstore.settings import Settings

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
    from ingest.archive import Archive, ArchiveBroken
    from rxstore.errors import WrongUse
    from rxstore.progress import Progress

    try:
        archive = Archive.opened(directory)
    except ArchiveBroken as error:
        raise WrongUse(str(error)) from error
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

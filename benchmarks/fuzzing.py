"""What damaged requests find: ``python -m benchmarks.fuzzing``.

The API over a real PostgreSQL with prescriptions in it, called as a server calls it. Two kinds of requests: what
schemathesis makes of the published document, and sound requests whose bytes are damaged (``tests/fuzzing.py``). Each
answer must be one that is published, tell of no inner affairs and of no patient who was not asked for; nothing that is
logged meanwhile, at debug level, may name one. Exit code 1 when anything is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from benchmarks import report
from tests import fuzzing, servers
from tests.conftest import migrated
from tests.fuzzing import Findings

SHOWN = 20


@click.command()
@click.option("--documented", default=10_000, show_default=True, help="How many requests from the document.")
@click.option("--damaged", default=100_000, show_default=True, help="How many with damaged bytes.")
@click.option("--prescriptions", default=500, show_default=True, help="How many are stored.")
@click.option("--seed", default=1, show_default=True, help="The same seed sends the same requests.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(documented: int, damaged: int, prescriptions: int, seed: int, as_json: bool) -> None:
    """Send damaged requests, and say what was answered."""
    with (
        servers.postgres() as server_url,
        migrated(server_url) as template,
        fuzzing.filled(server_url, template, prescriptions) as target,
    ):
        surroundings = report.surroundings(target.database_url)
        rows = [
            _run("from the document", lambda: fuzzing.from_the_document(target.api, target.known, documented, seed)),
            _run("bytes damaged", lambda: fuzzing.bytes_damaged(target.api, target.known, damaged, seed)),
        ]
    found = [row.pop("found") for row in rows]
    for one in (wrong for run in found for wrong in run.wrong[:SHOWN]):
        click.echo(one, err=True)
    answers = [
        {"path": path, "HTTP": status, "code": code, "answers": sum(run.answers[path, status, code] for run in found)}
        for path, status, code in sorted(set().union(*(run.answers for run in found)))
    ]
    table = "\n\n".join([report.table("Requests", rows), report.table("Answers", answers)])
    report.tell({**surroundings, "seed": seed, "runs": rows, "answers": answers}, table, as_json=as_json)
    if any(run.wrong for run in found):
        raise SystemExit(1)


def _run(name: str, send: Callable[[], Findings]) -> dict[str, Any]:
    began = time.monotonic()
    found = send()
    seconds = time.monotonic() - began
    return {"what": name, "requests": found.requests, "seconds": seconds, "wrong": len(found.wrong), "found": found}


if __name__ == "__main__":
    main()

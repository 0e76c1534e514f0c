"""What the audit trail costs: ``python -m benchmarks.auditing``.

In the same run, on the same rows: look-ups by plain HTTP over kept connections without and with the trail, by turns,
with the server's own CPU time for a request; how many records shared a commit; what a record takes on disk. PostgreSQL
is as safe as in earnest: each commit of records waits for the disk. ``benchmarks.securing`` measures it over TLS.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from benchmarks import ground, report
from benchmarks.asking import _retrieve
from benchmarks.ground import Store
from benchmarks.securing import Way, _middle, _rate, serving
from benchmarks.usage import MICROSECONDS
from query_api import audit
from query_api.audit import BEGIN, Cover, Entry
from query_api.settings import utc_now
from rxstore import auditing

QUESTION = "GET /mm/prescriptions/A3B91E-Z90124-8CD19F?format=trace"
TRIES = 2_000


@click.command()
@click.option("--prescriptions", default=5_000, show_default=True, help="How many are stored.")
@click.option("--seconds", default=6.0, show_default=True, help="How long each measurement takes.")
@click.option("--repeat", default=3, show_default=True, help="How often each way is measured, by turns.")
@click.option("--clients", default=8, show_default=True, help="How many ask at the same time.")
@click.option("--workers", default=2, show_default=True, help="Server processes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(prescriptions: int, seconds: float, repeat: int, clients: int, workers: int, as_json: bool) -> None:
    """Measure requests a second without and with the audit trail."""
    with (
        ground.ground() as on,
        ground.store(on) as stored,
        tempfile.TemporaryDirectory(prefix="rxstore-auditing-") as directory,
    ):
        surroundings = report.surroundings(on.database_url)
        events = int(prescriptions * ground.EVENTS_PER_PRESCRIPTION)
        ground.timed("published", lambda: stored.publish(ground.events(events)))
        stored.run("project", "--until-caught-up")
        with stored.connect() as connection:
            connection.execute("VACUUM ANALYZE")
            known = connection.execute(
                "SELECT stream_key, prescription_id FROM rxstore.prescription WHERE kind = 'created'"
            ).fetchall()
        paths = [_retrieve(row) for row in known]
        ways = [
            Way("without", ("--insecure",), {}),
            Way("with the audit trail", ("--insecure",), audited(Path(directory))),
        ]
        rows: list[dict[str, Any]] = []
        for _ in range(repeat):
            for way in ways:
                with serving(stored, way, workers) as (address, server):
                    rows.append(_rate(way, address, server, paths, clients, seconds))
                    ground.say(f"{way.name}: {rows[-1]['a second']:,}/s")
        told = [_middle(way.name, rows) for way in ways]
        for row in told:
            row["of without"] = round(row["a second"] / told[0]["a second"], 2)
        records = _records(stored)
        verified = ground.timed("verified", lambda: _verified(stored, Path(directory)))
    steps = _steps()
    document = {"surroundings": surroundings, "ways": told, "all": rows, "records": records, "steps": steps}
    title = f"{len(paths):,} prescriptions, {clients} callers, {workers} server processes, retrieve"
    told_of_records = ", ".join(f"{name} {value}" for name, value in records.items())
    told_of_steps = "CPU: " + ", ".join(f"{name} {value} us" for name, value in steps.items())
    report.tell(
        document,
        "\n".join([report.table(title, told), "", f"{told_of_records}, verified {verified:,}", told_of_steps]),
        as_json=as_json,
    )


def audited(directory: Path) -> dict[str, str]:
    """Make keys, and return the settings of a server that keeps a trail."""
    public, _, hash_ = auditing.make_keys(directory)
    return {
        "RXSTORE_AUDIT": "on",
        "RXSTORE_AUDIT_PUBLIC_KEY_FILE": str(public),
        "RXSTORE_AUDIT_HASH_KEY_FILE": str(hash_),
        "RXSTORE_AUDIT_ANCHOR_FILE": str(directory / "anchors.ndjson"),
    }


def _records(stored: Store) -> dict[str, Any]:
    with stored.connect() as connection:
        count, commits = connection.execute("SELECT count(*), count(DISTINCT xmin::text) FROM rxstore.audit").fetchone()
        (size,) = connection.execute(
            "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('rxstore.audit') WHERE isleaf"
        ).fetchone()
    return {"records": count, "a commit": round(count / commits, 2), "bytes a record": round(size / count)}


def _verified(stored: Store, directory: Path) -> int:
    stored.run("audit", "verify", "--anchors", str(directory / "anchors.ndjson"))
    with stored.connect() as connection:
        row = connection.execute("SELECT count(*) FROM rxstore.audit").fetchone()
    return int(row[0]) if row else 0


def _steps() -> dict[str, float]:
    """Return the CPU time that the parts of a record take, each alone."""
    keys = audit.new_keys(bytes(audit.KEY_BYTES))
    cover, at, chain = Cover(hash_key=keys["hash"], public_key=keys["public"]), utc_now(), uuid4()
    entry = Entry(
        duration_us=1_000,
        asid="200000000946",
        certificate="0" * 64,
        user_id="123456789012",
        role_profile_id="123456789012",
        trace_id=None,
        interaction="ExternalPrescriptionQuery_1_0",
        patient=cover.patient("9912003489"),
        prescription="A3B91E-Z90124-8CD19",
        question=cover.question(QUESTION),
        http_status=200,
        tracker_code="0",
        shown=["A3B91E-Z90124-8CD19"],
        refused_by=None,
    )
    steps = {
        "seal": lambda: cover.question(QUESTION),
        "hash": lambda: cover.patient("9912003489"),
        "chain": lambda: audit.chained(chain, BEGIN, at, entry),
    }
    return {
        name: round(min(timeit.repeat(step, timer=time.process_time, number=TRIES, repeat=3)) / TRIES * MICROSECONDS, 1)
        for name, step in steps.items()
    }


if __name__ == "__main__":
    main()

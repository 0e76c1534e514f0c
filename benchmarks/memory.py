"""Whether a worker's memory stays flat: ``python -m benchmarks.memory``.

One worker projects a long backlog while its resident memory is sampled. What it remembers of recent prescriptions is
bounded and full after a while; from then on the samples must not rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import click

from benchmarks import ground, report
from benchmarks.projecting import project

WARM_AFTER = 0.4
MOST_GROWTH = 0.10
SHOWN = 20

Sample = tuple[int, float]


@click.command()
@click.option("--events", default=1_000_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def main(events: int, seed: int, as_json: bool) -> None:
    """Sample one worker's memory over a long backlog; exit code 1 when it grows."""
    samples: list[Sample] = []

    def seen(projected: int, megabytes: Sequence[float]) -> None:
        if projected and megabytes:
            samples.append((projected, max(megabytes)))

    with ground.ground() as on:
        surroundings = report.surroundings(on.database_url)
        with ground.store(on) as store:
            ground.timed("published", lambda: store.publish(ground.events(events, seed=seed)))
            row = project(on, store, 1, events, seen)
    growth = _growth(samples, events)
    document = {"surroundings": surroundings, "samples": samples, "growth": growth, "run": row}
    said = "flat" if growth <= MOST_GROWTH else "GROWING"
    text = "\n".join(
        [
            report.table(f"resident memory of one worker over {events:,} events", _rows(samples)),
            f"\n{said}: the last fifth holds {growth:+.1%} against the fifth after {WARM_AFTER:.0%} of the events",
        ]
    )
    report.tell(document, text, as_json=as_json)
    if growth > MOST_GROWTH:
        raise SystemExit(1)


def _growth(samples: Sequence[Sample], events: int) -> float:
    """Return by how much memory rose between the fifth after the warm-up and the last fifth, as a share."""
    early = [held for at, held in samples if WARM_AFTER <= at / events < WARM_AFTER + 0.2]
    late = [held for at, held in samples if at / events >= 0.8]
    if not early or not late:
        raise SystemExit("too few samples: ask for more --events")
    return mean(late) / mean(early) - 1


def _rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    step = max(1, len(samples) // SHOWN)
    return [{"events": f"{at:,}", "MB": round(held)} for at, held in samples[::step]]


if __name__ == "__main__":
    main()

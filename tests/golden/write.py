"""Writes the golden log, when there is none, and what it folds to today: after the definition was raised."""

from __future__ import annotations

import orjson

from projector.definition import DEFINITION
from tests.golden.folding import LOG, ROWS, digests, line, read_log
from tests.integration.projecting import generated_log

LARGEST = 20_000


def main() -> None:
    """Write both files."""
    if not LOG.exists():
        records = [r for r in generated_log(220, seed=9, dirty_rate=0.15).records() if len(r.value or b"") < LARGEST]
        LOG.write_bytes(b"".join(line(record) + b"\n" for record in records))
    document = {"definition": DEFINITION, **digests(read_log())}
    ROWS.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


if __name__ == "__main__":
    main()

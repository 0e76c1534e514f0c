"""How a benchmark says what it found: a table for people, one JSON document for programs, and where it ran."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import psutil
import psycopg

LIBRARIES = ("rxstore", "kafka-python", "psycopg", "orjson", "jsonschema-rs", "falcon", "gunicorn", "SQLAlchemy")


def surroundings(database_url: str) -> dict[str, Any]:
    """Return when and where this ran, and on which versions; ``load`` is that before anything was measured."""
    with psycopg.connect(database_url) as connection:
        postgres = connection.info.server_version
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "postgresql": f"{postgres // 10_000}.{postgres % 10_000}",
        **{name: version(name) for name in LIBRARIES},
    }


def tell(document: Mapping[str, Any], table: str, *, as_json: bool) -> None:
    """Print the table; with ``as_json`` the document instead, and the table on standard error."""
    print(table, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(document, indent=2))


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows under their names, numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[shown(row.get(name)) for name in names] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    first, *others = widths

    def line(texts: Sequence[str]) -> str:
        head, *rest = texts
        return "  ".join(
            [head.ljust(first), *(text.rjust(width) for text, width in zip(rest, others, strict=True))]
        ).rstrip()

    return "\n".join([title, line(names), *map(line, cells)])


def shown(value: object) -> str:
    """Return a cell: big numbers with separators and no decimals, small ones with few."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def middle(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median of each number over repeated measurements, and the first of all else."""
    result: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row.get(name) is not None]
        numbers = [value for value in values if isinstance(value, int | float)]
        result[name] = median(numbers) if numbers and len(numbers) == len(values) else rows[0][name]
    return result

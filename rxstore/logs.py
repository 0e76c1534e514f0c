"""Log lines on stderr: text for people, JSON for collectors; each with its action, none with a patient in it."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

# What every record has; the rest came with ``extra``.
STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}

# Whatever our own level is: at debug these quote the bytes and rows that they carry, and those name patients. The
# broker client warns of its own inner affairs; what they mean for us the worker says itself. kafka.cluster calls it an
# error that a refresh was under way when its client was closed.
OTHERS = {
    "kafka": logging.ERROR,
    "kafka.cluster": logging.CRITICAL,
    "sqlalchemy": logging.WARNING,
    "alembic": logging.WARNING,
}


SELDOM_SECONDS = 60.0


class TextFormatter(logging.Formatter):
    """``2026-03-01T09:00:00.000Z INFO ingest.consumer: message (action=rejoin)``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        line = f"{instant(record)} {record.levelname} {record.name}: {record.message}"
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        return f"{line} ({extra})" if extra else line


def instant(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in STANDARD_ATTRIBUTES}


def json_formatter() -> logging.Formatter:
    from pythonjsonlogger.orjson import OrjsonFormatter

    class JsonFormatter(OrjsonFormatter):
        """One object a line: time, level, logger, message, and what came with ``extra``."""

        def add_fields(
            self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
        ) -> None:
            log_data |= {"time": instant(record), "level": record.levelname.lower(), "logger": record.name}
            super().add_fields(log_data, record, message_dict)

    return JsonFormatter("{message}", style="{")


class StderrHandler(logging.Handler):
    """Writes to what stderr is at that moment, which a test or a progress bar may have replaced since."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


class Seldom(logging.Filter):
    """Lets a line of the broker client pass once a minute from each place in its code.

    While a broker is away it says the same with each attempt, several times a second; what the worker does about it,
    the worker says itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is to be written."""
        if not record.name.startswith("kafka"):
            return True
        place = (record.name, record.lineno)
        last = self._passed.get(place)
        if last is not None and 0 <= record.created - last < SELDOM_SECONDS:
            return False
        self._passed[place] = record.created
        return True


def configure(level_name: str, log_format: str) -> None:
    """Sends what this process logs to stderr; takes the values of RXSTORE_LOG_LEVEL and RXSTORE_LOG_FORMAT."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler = StderrHandler()
    handler.setFormatter(json_formatter() if as_json else TextFormatter())
    handler.addFilter(Seldom())
    level = logging.getLevelNamesMapping()[level_name.upper()]
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, least in OTHERS.items():
        logging.getLogger(name).setLevel(max(level, least))


def always(**extra: str) -> None:
    """Put the same beside every line of this process from now on."""

    def add(record: logging.LogRecord) -> bool:
        vars(record).update(extra)
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(add)

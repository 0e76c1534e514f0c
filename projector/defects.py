"""What is said of a defect of ours: its type and where it was raised, never its message, which may quote data."""

from __future__ import annotations

from types import TracebackType

from projector.batch import FieldError

OURS = ("ingest", "projector", "schemas")
THE_MACHINES = (MemoryError, OSError)
OF_THIS_VERSION = "a defect of this version, not of the event"


def defect(error: Exception, what: str = "the fold") -> FieldError:
    """Return what is kept with a record that raised ``error``; raises what is the machine's fault and no defect."""
    if isinstance(error, THE_MACHINES):
        raise error
    return FieldError("", f"{what} raised {type(error).__name__} {where(error)}: {OF_THIS_VERSION}")


def where(error: Exception) -> str:
    """Return the last place in our own code that the error came through, or the last of all."""
    places = [(_module(step), step) for step in _steps(error.__traceback__)]
    ours = [place for place in places if place[0].partition(".")[0] in OURS] or places
    if not ours:
        return "nowhere"
    module, step = ours[-1]
    return f"in {module}.{step.tb_frame.f_code.co_qualname}, line {step.tb_lineno}"


def _steps(step: TracebackType | None) -> list[TracebackType]:
    steps = []
    while step is not None:
        steps.append(step)
        step = step.tb_next
    return steps


def _module(step: TracebackType) -> str:
    return str(step.tb_frame.f_globals.get("__name__", "?"))

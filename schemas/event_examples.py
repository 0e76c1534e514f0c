"""One canonical example of each event, plainly invented; in the order of a prescription's life where they follow."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, cast


def example(event_type: str) -> dict[str, Any]:
    """A structured CloudEvent of this type, such as ``eps.prescription.created.v1``; a new copy at each call."""
    fact = event_type.removeprefix("eps.prescription.").removesuffix(".v1")
    text = files("schemas").joinpath("data", "examples", f"{fact}.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))

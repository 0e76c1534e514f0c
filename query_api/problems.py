"""What our own paths answer when they cannot: plain HTTP codes with a title and what helps, never stored.

The tracker's paths have their own envelope instead (``errors``).
"""

from __future__ import annotations

import falcon

NOT_STORED = {"Cache-Control": "no-store"}


def malformed(description: str) -> falcon.HTTPBadRequest:
    """The question breaks a rule."""
    return falcon.HTTPBadRequest(title="Malformed question", description=description, headers=NOT_STORED)


def unknown(description: str) -> falcon.HTTPNotFound:
    """There is nothing of that name."""
    return falcon.HTTPNotFound(title="Not found", description=description, headers=NOT_STORED)


def forbidden(description: str) -> falcon.HTTPForbidden:
    """The caller may not ask this."""
    return falcon.HTTPForbidden(title="Not allowed", description=description, headers=NOT_STORED)


def too_many(retry_after_seconds: int) -> falcon.HTTPTooManyRequests:
    """The caller asks more often than it may."""
    return falcon.HTTPTooManyRequests(
        title="Too many requests",
        description="Ask again after the seconds of Retry-After, and less often.",
        headers=NOT_STORED,
        retry_after=retry_after_seconds,
    )


def unavailable(description: str, *, retry_after_seconds: int = 5) -> falcon.HTTPServiceUnavailable:
    """Something that the answer needs is away or too slow; the same question may be answered later."""
    return falcon.HTTPServiceUnavailable(
        title="Not available now", description=description, headers=NOT_STORED, retry_after=retry_after_seconds
    )


def not_here(description: str) -> falcon.HTTPNotImplemented:
    """This server was started without what the answer needs."""
    return falcon.HTTPNotImplemented(title="Not told here", description=description, headers=NOT_STORED)

"""``rxstore demo``: the whole system on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from rxstore.cli.options import example

if TYPE_CHECKING:
    from rxstore.demonstration import Certificates, Demo

DEFAULT_PRESCRIPTIONS = 500


@click.command(epilog=example("rxstore demo", "rxstore demo --once", "rxstore demo --tls"))
@click.option("--once", is_flag=True, help="Print one search and one detail answer, and end.")
@click.option(
    "--prescriptions",
    type=click.IntRange(min=50, max=100_000),
    default=DEFAULT_PRESCRIPTIONS,
    show_default=True,
    help="How many invented prescriptions there are.",
)
@click.option("--port", type=click.IntRange(min=1, max=65_535), help="Where the API listens; any free port by default.")
@click.option("--tls", is_flag=True, help="Serve over TLS to two clients with certificates and different rights.")
def command(once: bool, prescriptions: int, port: int | None, tls: bool) -> None:
    """The whole system on this machine, with nothing installed but this package.

    It starts PostgreSQL and a broker, publishes invented lifecycles, projects them and serves the API, and then goes
    on feeding events until Ctrl-C. Nothing of it is kept.
    """
    from rxstore import demonstration

    began = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - began:5.1f} s  {text}", err=True)

    with demonstration.running(prescriptions=prescriptions, port=port, say=say, tls=tls) as demo:
        search, detail = demo.urls()
        say("ready")
        if once:
            click.echo(demo.ask(search))
            click.echo(demo.ask(detail))
            return
        click.echo(f"\nA patient's prescriptions:\n\n  {demo.curl(search)}\n")
        click.echo(f"One prescription:\n\n  {demo.curl(detail)}\n")
        if demo.certificates is not None:
            click.echo("".join(_refusals(demo, demo.certificates, search, detail)))
        click.echo(f"Also: {demo.base_url}/health/ready, /metrics and /openapi.json\n")
        with suppress(KeyboardInterrupt):
            _keep_going(demo, say)
        say("stopping; nothing is kept")


def _refusals(demo: Demo, certificates: Certificates, search: str, detail: str) -> Iterator[str]:
    """Say what the second client may and what nobody may, each as a line to paste."""
    from rxstore.demonstration import ASID, SEARCHING_ASID

    second = certificates.searching
    without = f"curl -sS --cacert {certificates.authority.certfile} '{search}'"
    for what, line in (
        (f"Client {SEARCHING_ASID} may search", demo.curl(search, SEARCHING_ASID, second)),
        ("and not look up, code 52", demo.curl(detail, SEARCHING_ASID, second)),
        (f"nor say that it is {ASID}, code 52", demo.curl(search, ASID, second)),
        ("Without a certificate there is no connection", without),
    ):
        yield f"{what}:\n\n  {line}\n\n"


def _keep_going(demo: Demo, say: Callable[[str], None]) -> None:
    say("feeding events, an hour of theirs a second, until Ctrl-C")
    demo.feed(lambda count: say(f"{count:,} events fed") if count % 100 == 0 else None)
    say("every lifecycle has ended; the API goes on answering until Ctrl-C")
    while True:
        demo.check()
        time.sleep(1)

"""``rxstore``: every command by name, and the one place where errors become a sentence and an exit code.

To add a command: name it in ``COMMANDS`` and define ``command`` in the module of that name beside this one.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

import click

from rxstore import tracebacks
from rxstore.errors import explained

# In the order in which a newcomer meets them; each with what `rxstore --help` says of it.
COMMANDS = {
    "demo": "The whole system on this machine, with nothing installed but this package.",
    "migrate": "Create or upgrade the schema of the database.",
    "topics": "Create the topic, or say what differs from what the contract asks for.",
    "generate": "Write synthetic lifecycles as NDJSON, one CloudEvent a line.",
    "validate": "Check events against the contract.",
    "publish": "Validate events and send them to the topic.",
    "project": "Run the projector: from the topic to the read models.",
    "serve": "Run the query API.",
    "clients": "Who may ask the API what.",
    "audit": "Who asked the API what: search the trail, and verify that it is whole.",
    "status": "How far the projector is, and whether anything needs attention.",
    "diagnose": "What is wrong, what it means for patients, and the next command to run.",
    "quarantine": "What was set aside, and why; retry, skip and undo.",
    "explain": "The story of one prescription.",
    "query": "What the API would answer, from the live generation or any other.",
    "rebuild": "Make rows anew from the topic.",
    "archive": "The topic in files, for a rebuild that retention cannot hinder.",
    "selftest": "Kill and cut off workers on your own servers, and compare what is left with the pure fold.",
    "settings": "Every setting with its value, default and meaning.",
    "contract": "Print the published contracts: JSON Schema, AsyncAPI, OpenAPI.",
}

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + signal.SIGPIPE


class Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt it unwinds what runs, so that every ``with`` block ends cleanly."""


class Commands(click.Group):
    """Finds each command in its module when it is asked for, and ends what it raises in our manners."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"rxstore.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
            return done
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except Terminated:
            ctx.exit(TERMINATED)
        except BrokenPipeError:
            # Whoever read our output has seen enough; Python would complain about it once more while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE)
        except Exception as error:
            if (said := explained(error)) is None:
                raise
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                click.echo(tracebacks.trace(error), err=True)
            click.echo(f"rxstore: {said}", err=True)
            ctx.exit(said.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rxstore")
def rxstore() -> None:
    """Prescription read models: from a Kafka topic into PostgreSQL, served as the tracker.

    `rxstore demo` shows the whole system; `rxstore COMMAND --help` explains one command, with an example.
    """


def raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def leave_no_core() -> None:
    """Let the system keep no memory of this process, or of one that it starts, when it crashes: it holds patients."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def main() -> None:
    """The console script. A command that runs for long sets handlers of its own and stops at a consistent point."""
    leave_no_core()
    tracebacks.hide_messages()
    signal.signal(signal.SIGTERM, raise_terminated)
    rxstore(prog_name="rxstore")


if __name__ == "__main__":
    main()

"""The manners of every command: help with an example, one sentence for an error, the exit codes, clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner, Result

from rxstore import progress as progress_module
from rxstore.cli.main import COMMANDS, rxstore
from rxstore.errors import Refused, ServerUnavailable, WrongUse
from rxstore.progress import Progress
from rxstore.settings import SETTINGS
from schemas.event_examples import example
from tests import examples


@pytest.fixture(autouse=True)
def in_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, stdin: str | bytes = b"", **environment: str) -> Result:
    return CliRunner().invoke(rxstore, arguments, input=stdin, env=environment, catch_exceptions=False)


def every_command(group: click.Group = rxstore, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += every_command(command, (*path, name))
    return found


def file_of(*payloads: object) -> str:
    return "\n".join(payload if isinstance(payload, str) else json.dumps(payload) for payload in payloads)


# every command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(path):
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    assert "Example:" in shown.stdout
    assert f"rxstore {path[0]}" in shown.stdout.partition("Example:")[2]


def test_the_help_names_every_command_with_what_it_does():
    shown = " ".join(run("--help").stdout.split())
    for name, summary in COMMANDS.items():
        assert f"{name} {summary}" in shown


def test_the_help_is_there_at_once_since_it_loads_no_command():
    slow = "import sys, rxstore.cli.main; print({'kafka', 'sqlalchemy', 'falcon', 'psycopg'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", slow], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_an_unknown_option_is_wrong_use():
    assert run("settings", "--loud").exit_code == 2


def test_an_unknown_command_is_wrong_use():
    assert run("projekt").exit_code == 2


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command_that_raises(monkeypatch):
    def make(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(type(rxstore), "get_command", lambda self, ctx, name: command)

    return make


@pytest.mark.parametrize(("error", "code"), [(WrongUse, 2), (ServerUnavailable, 3), (Refused, 4)])
def test_an_error_of_ours_is_one_line_and_its_exit_code(command_that_raises, error, code):
    command_that_raises(error("the thing is so; do this"))
    done = run("anything")
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr == "rxstore: the thing is so; do this\n"


def test_ctrl_c_ends_with_130_and_says_nothing(command_that_raises):
    command_that_raises(KeyboardInterrupt())
    done = run("anything")
    assert (done.exit_code, done.output) == (130, "")


def test_a_bug_is_not_hidden(command_that_raises):
    command_that_raises(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run("anything")


def test_a_database_that_is_away_is_one_line():
    done = run("migrate", RXSTORE_DATABASE_URL="postgresql://u:secret@127.0.0.1:1/db")
    assert done.exit_code == 3
    assert done.stderr.startswith("rxstore: ")
    assert "RXSTORE_DATABASE_URL" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_a_missing_setting_is_named():
    done = run("topics", "create")
    assert done.exit_code == 2
    assert done.stderr.startswith("rxstore: RXSTORE_KAFKA_BOOTSTRAP_SERVERS is not set")


def test_a_traceback_is_shown_at_log_level_debug_only():
    quiet = run("topics", "create", RXSTORE_LOG_LEVEL="info")
    loud = run("topics", "create", RXSTORE_LOG_LEVEL="debug")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


# ends -----------------------------------------------------------------------------------------------------------------


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rxstore.cli.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_without_a_traceback(number, code):
    bad = "{}"
    with started("validate", "-", "--json") as process:
        # The first report tells that the command runs; a report is written out when the next line is asked for.
        process.stdin.write(f"{bad}\n" * 5_000)
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == code
    assert "Traceback" not in said


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    with started("contract", "openapi") as process:
        process.stdout.close()
        process.wait()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == ""


# settings -------------------------------------------------------------------------------------------------------------


def test_settings_lists_every_variable_with_its_meaning():
    shown = run("settings").stdout
    for setting in SETTINGS:
        assert f"{setting.name} = " in shown
        assert setting.meaning in shown


def test_settings_as_json_tell_where_a_value_came_from():
    with open(".env", "w") as file:
        file.write("RXSTORE_GROUP_ID=mine\n")
    shown = {setting["name"]: setting for setting in json.loads(run("settings", "--json", RXSTORE_TOPIC="t").stdout)}
    assert shown["RXSTORE_TOPIC"] == {
        "name": "RXSTORE_TOPIC",
        "value": "t",
        "origin": "environment",
        "default": "prescription-events",
        "meaning": "the event log",
    }
    assert shown["RXSTORE_GROUP_ID"]["origin"] == ".env"
    assert shown["RXSTORE_PARTITIONER"]["origin"] == "default"


def test_settings_show_no_password():
    shown = run(
        "settings",
        RXSTORE_DATABASE_URL="postgresql://u:secret@h/db",
        RXSTORE_KAFKA_SASL_PASSWORD="secret",
    )
    assert "postgresql://u:***@h/db" in shown.stdout
    assert "secret" not in shown.stdout


def test_settings_show_where_a_secret_is_and_nothing_of_it():
    with open("database", "w") as file:
        file.write("postgresql://u:secret@h/db\n")
    with open("password", "w") as file:
        file.write("secret\n")
    by_file = {"RXSTORE_DATABASE_URL_FILE": "database", "RXSTORE_KAFKA_SASL_PASSWORD_FILE": "password"}
    shown = run("settings", **by_file).stdout
    assert "RXSTORE_DATABASE_URL = postgresql://u:***@h/db  [from the file database]" in shown
    assert "RXSTORE_KAFKA_SASL_PASSWORD = ***  [from the file password]" in shown
    assert "secret" not in shown + run("settings", "--json", **by_file).stdout


def test_an_unknown_setting_is_an_error_of_every_command_that_reads_them():
    done = run("settings", RXSTORE_TOPIK="t")
    assert done.exit_code == 2
    assert "did you mean RXSTORE_TOPIC?" in done.stderr


# contract -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "member", "value"),
    [
        ("json-schema", "$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("asyncapi", "asyncapi", "3.0.0"),
        ("openapi", "openapi", "3.1.0"),
    ],
)
def test_contract_prints_a_json_document_and_nothing_else(document, member, value):
    assert json.loads(run("contract", document).stdout)[member] == value


def test_asyncapi_describes_the_configured_topic():
    document = run("contract", "asyncapi", "--partitions", "12", RXSTORE_TOPIC="rehearsal").stdout
    assert '"rehearsal"' in document
    assert "12" in document


# validate -------------------------------------------------------------------------------------------------------------


def test_good_events_validate_in_silence():
    done = run("validate", "-", stdin=file_of(examples.created(), "", examples.released()))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("2 events checked")


def test_each_bad_line_is_reported_with_its_number_the_paths_and_what_was_expected():
    lines = file_of(examples.created(), "", examples.released(issue_number=0, id=""), "no JSON")
    done = run("validate", "-", stdin=lines)
    assert done.exit_code == 1
    third, fourth = done.stdout.splitlines()
    assert third.startswith("line 3: ")
    assert "data.issueNumber: must be" in third
    assert "id: must be" in third
    assert fourth.startswith("line 4: must be JSON")


def test_reports_as_json_are_one_object_a_line():
    done = run(
        "validate", "-", "--json", stdin=file_of(examples.released(issue_number=0, id="r-1"), examples.created())
    )
    assert done.exit_code == 1
    (report,) = map(json.loads, done.stdout.splitlines())
    assert (report["line"], report["id"]) == (1, "r-1")
    assert [error["path"] for error in report["errors"]] == ["data.issueNumber"]


def test_a_report_never_repeats_a_value():
    done = run("validate", "-", stdin=file_of(examples.created(nhs_number="9990000019")))
    assert done.exit_code == 1
    assert "data.nhsNumber" in done.stdout
    assert "9990000019" not in done.output


def test_settings_that_change_what_is_accepted_count_for_validate_too():
    wrong = "A" if examples.PRESCRIPTION_ID[-1] != "A" else "B"
    lines = file_of(examples.created(subject=examples.STREAM_KEY + wrong))
    assert run("validate", "-", stdin=lines).exit_code == 1
    assert run("validate", "-", stdin=lines, RXSTORE_CHECK_CHARACTER="lenient").exit_code == 0
    assert run("validate", "-", stdin=file_of(examples.created()), RXSTORE_MAX_VALUE_BYTES="1024").exit_code == 1


def test_a_file_that_cannot_be_read_is_wrong_use():
    done = run("validate", "no-such-file")
    assert done.exit_code == 2
    assert done.stderr == "rxstore: no-such-file cannot be read: No such file or directory\n"


def test_the_published_examples_validate():
    assert run("validate", "-", stdin=file_of(example("eps.prescription.created.v1"))).exit_code == 0


# progress -------------------------------------------------------------------------------------------------------------


def test_nothing_is_shown_of_what_takes_less_than_two_seconds(clock, capsys):
    with Progress("fold", "events", total=100) as progress:
        for _ in range(100):
            progress.advance()
            clock.now += 0.019
    assert capsys.readouterr().err == ""


def test_off_a_terminal_there_is_a_line_every_five_seconds_with_rate_and_time_left(clock, capsys):
    with Progress("fold", "events", total=2_000) as progress:
        for _ in range(90):
            clock.now += 0.1
            progress.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "fold: 200 events, 100/s, 10 %, about 0:18 left",
        "fold: 700 events, 100/s, 35 %, about 0:13 left",
    ]


def test_without_a_total_there_is_a_rate(clock, capsys):
    with Progress("fold", "events") as progress:
        clock.now += 3
        progress.advance(300)
    assert capsys.readouterr().err == "fold: 300 events, 100/s\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress_module, "SILENT_S", 0.0)
    with Progress("fold", "events", total=10) as progress:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            progress.advance(0)
        progress.advance(5)
    shown = capsys.readouterr().err
    assert "fold" in shown
    assert "/10" in shown


# publish --wait -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--wait", "-"), ("-", "--wait"), ("--wait", "5", "-"), ("--wait=5", "-")])
def test_wait_takes_a_number_of_seconds_or_none(arguments):
    shown = run("publish", *arguments)
    assert (shown.exit_code, "RXSTORE_DATABASE_URL" in shown.stderr) == (2, True)


def test_wait_needs_the_database_before_anything_is_sent():
    unreachable = {"RXSTORE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    assert run("publish", "-", "--wait", **unreachable).exit_code == 3

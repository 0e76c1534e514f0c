"""The pages for people and the code say the same: links, commands, settings, metrics, reasons, views, decisions."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

import click
import pytest
from prometheus_client.metrics import MetricWrapperBase

from ingest import metrics as projector_metrics
from projector import tables
from projector.batch import Reason
from query_api import metrics as api_metrics
from rxstore.cli.main import rxstore
from rxstore.diagnosis.findings import KINDS
from rxstore.errors import RxstoreError
from rxstore.report import GOOD_VERDICTS
from rxstore.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]
OPERATORS = sorted((ROOT / "docs" / "operators").glob("**/*.md"))
DECISIONS = sorted(path for path in (ROOT / "docs" / "decisions").glob("*.md") if path.name != "README.md")

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """The page without its blocks of code."""
    return BLOCK.sub("", text_of(name))


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def rows_of(name: str, first_column: str) -> list[list[str]]:
    """The cells of every table row whose first cell matches, without the quotes of code."""
    lines = re.findall(r"^\|(.*)\|$", text_of(name), re.MULTILINE)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    return [row for row in rows if re.fullmatch(first_column, row[0])]


def code_of(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(name)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        page = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        page = page / "README.md" if page.is_dir() else page
        if not page.is_file() or (anchor and anchor not in anchors_of(page)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name):
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|json|yml)|[\w.-]+/)`", prose_of(name))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_index():
    index = text_of("docs/README.md")
    pages = [page.relative_to(ROOT / "docs") for page in PAGES[2:]]
    indexed = {str(page) for page in pages if page.name != "README.md" and page.parts[0] != "decisions"}
    assert set(re.findall(r"\]\(([a-z/_-]+\.md)\)", index)) == indexed


def test_every_decision_is_in_the_index_under_its_title():
    titles = {path.name: path.read_text(encoding="utf-8").partition("\n")[0] for path in DECISIONS}
    index = rows_of("docs/decisions/README.md", r"\d{4}")
    listed = {target: f"# {number}: {title}" for number, link in index for title, target in [_link(link)]}
    assert listed == titles


def _link(cell: str) -> tuple[str, str]:
    title, target = re.fullmatch(r"\[(.*)\]\((.*)\)", cell).groups()
    return title, target


def test_decisions_are_numbered_without_holes():
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_every_decision_says_what_would_change_our_mind(path):
    headings = re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert "What would change our mind" in headings


# commands -------------------------------------------------------------------------------------------------------------


def commands_in(name: str) -> list[str]:
    """Every call of rxstore on a page: in blocks of code at the begin of a line, and in code inside the text."""
    text = text_of(name)
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    calls = [call for line in lines for call in re.findall(r"^\$ (?:docker compose run --rm )?(rxstore .*)", line)]
    return calls + re.findall(r"`(?:docker compose run --rm )?(rxstore [a-z-][^`]*)`", BLOCK.sub("", text))


def parsed(call: str) -> None:
    """Parse a call as the shell and rxstore would, without running it; raises click's UsageError."""
    lexer = shlex.shlex(call, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split, lexer.commenters = True, ""
    words = list(takewhile(lambda word: word[0] not in "|>&;", lexer))[1:]
    command: click.Command = rxstore
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    if words and words not in (["--help"], ["--version"]):
        command.make_context(command.name, words, resilient_parsing=bool({"FILE", "DECISION"} & {*words}))


CALLS = sorted({(name, call) for name in NAMES for call in commands_in(name)})


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[f"{name}: {call}" for name, call in CALLS])
def test_every_command_on_a_page_exists_and_takes_these_options(name, call, tmp_path, monkeypatch):
    (tmp_path / "decisions.ndjson").touch()
    monkeypatch.chdir(tmp_path)
    parsed(call)


def test_the_sequence_of_the_readme_is_found():
    calls = [call for name, call in CALLS if name == "README.md"]
    assert "rxstore generate --prescriptions 20000 --seed 1 > events.ndjson" in calls
    assert "rxstore project --until-caught-up" in calls


def test_every_command_is_explained_to_operators_or_in_the_readme():
    told = " ".join(text_of(name) for name in ["README.md", *(str(path.relative_to(ROOT)) for path in OPERATORS)])
    commands = [" ".join(("rxstore", *path)) for path in every_command(rxstore)]
    assert [command for command in commands if command not in told] == []


def every_command(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        is_group = isinstance(command, click.Group)
        found += every_command(command, (*above, name)) if is_group else [(*above, name)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_on_a_page_exists(name):
    targets = set(re.findall(r"^([a-z]+):.*## ", text_of("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", text_of(name))) <= targets


# settings, metrics, codes ---------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default_and_meaning():
    documented = rows_of("docs/operators/settings.md", r"`RXSTORE_\w+`")
    expected = [
        [
            f"`{setting.name}`",
            "none" if setting.default is None else f"`{setting.default}`",
            f"{setting.meaning} (secret)" if setting.secret else setting.meaning,
        ]
        for setting in SETTINGS
    ]
    assert documented == expected


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_every_setting_that_a_page_names_is_one_of_ours(name):
    assert set(re.findall(r"\bRXSTORE_[A-Z_]+\b", text_of(name))) <= {
        name for setting in SETTINGS for name in setting.names
    }


def test_every_metric_is_documented_and_no_other():
    ours = [metric for metric in vars(projector_metrics).values() if isinstance(metric, MetricWrapperBase)]
    families = [family for metric in ours for family in metric.describe()]
    declared = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    declared |= {metric.name for metric in api_metrics.METRICS}
    documented = rows_of("docs/operators/monitoring.md", r"`rxstore_\w+`")
    assert {name for row in documented for name in code_of(row[0])} == declared


RUNBOOK = ROOT / "docs" / "operators" / "runbook"
PARTS = ["For patients", "Look", "Do", "Undo"]


def sections_of(path: Path) -> dict[str, list[str]]:
    """The sections of a runbook's page by their headings, each with the names of its parts."""
    sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0].strip("`"): re.findall(r"^- \*\*([^*]+):\*\*", section, re.MULTILINE)
        for section in sections
    }


RUNBOOK_PAGES = {path.stem: sections_of(path) for path in RUNBOOK.glob("*.md") if path.name != "README.md"}


def test_every_reason_has_its_section_in_the_runbook_and_no_other():
    assert set(RUNBOOK_PAGES["reasons"]) == {str(reason) for reason in Reason}


def test_every_finding_has_its_section_in_the_runbook_and_no_other():
    findings = {(page, code) for page in RUNBOOK_PAGES.keys() - {"reasons", "fencing"} for code in RUNBOOK_PAGES[page]}
    assert findings == {(kind.page, kind.code) for kind in KINDS.values()}


@pytest.mark.parametrize("page", sorted(RUNBOOK_PAGES))
def test_every_section_of_the_runbook_says_what_it_means_how_to_look_what_to_do_and_how_to_undo(page):
    assert {section: parts for section, parts in RUNBOOK_PAGES[page].items() if parts != PARTS} == {}


def test_the_runbook_is_found_by_code():
    rows = rows_of("docs/operators/runbook/README.md", r"\[`[a-z_]+`\]\(.*\)")
    findings = [[f"[`{k.code}`]({k.page}.md#{k.code})", str(k.severity), k.meaning] for k in KINDS.values()]
    assert [row for row in rows if len(row) == 3] == findings
    assert {code for row in rows if len(row) == 2 for code in code_of(row[0])} == {str(reason) for reason in Reason}


def test_every_finding_is_made_for_real_by_a_test():
    told = text_of("tests/acceptance/test_diagnose.py")
    assert [code for code in KINDS if f'"{code}"' not in told] == []


def test_every_state_of_a_record_is_documented_and_no_other():
    from rxstore.cli.quarantine import STATES

    documented = rows_of("docs/operators/quarantine.md", r"`[a-z_]+`")
    assert {name for row in documented if len(row) == 2 for name in code_of(row[0])} == set(STATES)


def test_every_verdict_is_documented_and_no_other():
    status = rxstore.get_command(click.Context(rxstore), "status")
    verdicts = re.search(r"verdict is ([a-z, ]+?)\.", " ".join((status.help or "").split()))[1]
    documented = {name for row in rows_of("docs/operators/README.md", r"`[a-z]+`") for name in code_of(row[0])}
    assert documented == set(re.split(r", | or ", verdicts))
    assert documented >= GOOD_VERDICTS


def test_every_exit_code_is_documented():
    codes = {int(code) for row in rows_of("docs/operators/monitoring.md", r"[\d, ]+") for code in row[0].split(",")}
    assert {0, *(kind.exit_code for kind in [RxstoreError, *RxstoreError.__subclasses__()])} <= codes


# views ----------------------------------------------------------------------------------------------------------------


def test_every_promised_column_is_in_its_view():
    documented = rows_of("docs/architecture.md", r"`[a-z_]+`")
    promised = {
        code_of(row[0])[0]: [*code_of(row[1]), *code_of(row[2])]
        for row in documented
        if code_of(row[0]) and len(row) == 3
    }
    assert set(promised) == set(tables.VIEWS) - {"checkpoint", "event"}
    assert [
        (view, column)
        for view, columns in promised.items()
        for column in columns
        if column not in tables.VIEWS and not re.search(rf"\b{column}\b", tables.VIEWS[view])
    ] == []


def test_every_table_is_documented():
    documented = {name for row in rows_of("docs/architecture.md", r"`[a-z_]+`") for name in code_of(row[0])}
    assert documented >= set(tables.READ_MODEL.tables)

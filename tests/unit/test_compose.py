"""What can be known of docker-compose.yml, Dockerfile, .ci/run and .env.example without a Docker engine."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from rxstore.cli.main import rxstore
from rxstore.settings import SETTINGS, TEST_PREFIX, load
from tests import servers

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "rxstore"}
ONE_SHOT = {"migrate", "topics", "rxstore", "sample"}
NAMES = {name for setting in SETTINGS for name in setting.names}


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def parsed(arguments: list[str]) -> None:
    """Parses a command line as `rxstore` would, without running it; raises click's UsageError."""
    command: click.Command = rxstore
    context = click.Context(rxstore)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command = found
    command.make_context(command.name, list(arguments))


def test_the_whole_system_is_there():
    assert set(SERVICES) == {"postgres", "kafka", "topics", "migrate", "projector", "api", "door", "rxstore", "sample"}


def test_the_servers_are_those_of_the_tests():
    assert SERVICES["kafka"]["image"] == servers.KAFKA_IMAGE
    assert SERVICES["postgres"]["image"] == servers.POSTGRES_IMAGE


def test_readme_names_the_same_versions():
    readme = text_of("README.md")
    assert f"Kafka {servers.KAFKA_VERSION}" in readme
    assert set(re.findall(r"Kafka (\d+\.\d+\.\d+)", readme)) == {servers.KAFKA_VERSION}
    assert SERVICES["postgres"]["image"].replace("postgres:", "PostgreSQL ") in readme


def test_every_image_has_a_version():
    for name, service in SERVICES.items():
        assert name in OURS or re.fullmatch(r"[a-z/]+:[0-9][0-9a-z.-]*", service["image"])


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_every_server_has_a_health_check_and_comes_back(name):
    assert SERVICES[name].get("healthcheck", {}).get("test")
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_what_runs_once_has_none(name):
    assert SERVICES[name]["healthcheck"] == {"disable": True}
    assert SERVICES[name]["restart"] in {"on-failure", "no"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_is_there_and_can_come_true(name):
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        if wanted["condition"] == "service_completed_successfully":
            assert other in ONE_SHOT
        else:
            assert wanted["condition"] == "service_healthy"
            assert other not in ONE_SHOT


@pytest.mark.parametrize("name", [name for name, service in OURS.items() if "command" in service])
def test_every_command_is_one_of_ours(name):
    parsed(SERVICES[name]["command"])


def test_the_sample_is_made_and_published_by_our_commands():
    shell, option, script = SERVICES["sample"]["entrypoint"]
    assert (shell, option) == ("sh", "-c")
    for command in script.split(" | "):
        name, *arguments = command.split()
        assert name == "rxstore"
        parsed(arguments)


@pytest.mark.parametrize("name", OURS)
def test_every_setting_is_known_and_well_formed(name, tmp_path):
    environment = {
        variable: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for variable, value in OURS[name]["environment"].items()
    }
    settings = load(environment, tmp_path / "none")
    assert settings.kafka()["bootstrap_servers"] == ["kafka:9092"]
    assert settings.database() == "postgresql://rxstore:rxstore@postgres:5432/rxstore"


def test_only_loopback_addresses_of_the_host_are_published():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_door_opens_where_the_api_listens():
    address = SERVICES["api"]["command"][-1]
    assert f"proxy_pass http://{address};" in COMPOSE["configs"]["door"]["content"]
    inner = SERVICES["api"]["ports"][0].rpartition(":")[2]
    assert f"listen {inner};" in COMPOSE["configs"]["door"]["content"]
    assert SERVICES["door"]["network_mode"] == "service:api"


def test_volumes_are_declared():
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == COMPOSE["volumes"].keys()


def test_the_image_runs_as_nobody_special_and_tells_its_health():
    dockerfile = text_of("Dockerfile")
    assert re.search(r"^USER rxstore$", dockerfile, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", dockerfile, re.MULTILINE)
    command = re.search(r"^CMD \[(.*)\]$", dockerfile, re.MULTILINE)[1]
    parsed(re.findall(r'"([^"]+)"', command))


def test_the_image_has_the_python_that_is_tested():
    lowest = tomllib.loads(text_of("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    assert set(re.findall(r"FROM python:([0-9.]+)-slim", text_of("Dockerfile"))) == {lowest}


def test_the_image_gets_every_package():
    packages = tomllib.loads(text_of("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    let_in = text_of(".dockerignore").splitlines()
    assert [package for package in packages if f"!{package}" not in let_in] == []


LOCKED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.MULTILINE)


@pytest.mark.parametrize("name", ["build", "dev", "run"])
def test_every_file_of_a_lock_has_a_hash_and_the_version_that_was_chosen(name):
    text = text_of(f"requirements/{name}.lock")
    found = LOCKED.findall(text)
    assert len(found) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    assert [package for package, _, hashes in found if not hashes] == []
    chosen = set(re.findall(r"^([a-z0-9-]+)==(\S+)$", text_of("constraints.txt"), re.MULTILINE))
    locked = {(package, version) for package, version, _ in found}
    assert locked == chosen if name == "dev" else locked < chosen


def test_the_locks_have_whatever_is_asked_for():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    asked = {"run": project["dependencies"], "dev": extras}
    for name, requirements in asked.items():
        locked = {package for package, *_ in LOCKED.findall(text_of(f"requirements/{name}.lock"))}
        wanted = {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in requirements}
        assert wanted <= locked


def test_whatever_is_installed_is_checked_by_its_hash_or_is_ours():
    for path in ("Makefile", "Dockerfile"):
        commands = re.findall(r"pip (?:install|wheel) ((?:[^\n]|(?<=\\)\n)*)", text_of(path))
        assert commands
        for command in commands:
            tools = "cyclonedx-bom==" in command  # apart from what is tested and shipped, see the Makefile
            assert "--require-hashes" in command or "--no-deps" in command or tools, command


def test_ci_can_be_run_and_asks_for_the_java_that_kafka_needs():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    assert f"-ge {servers.JAVA_VERSION} " in text_of(".ci/run")


def test_the_env_example_lists_every_setting_with_its_default_and_meaning():
    expected = "\n\n".join(f"# {s.meaning}\n# {s.name}={s.default or ''}" for s in SETTINGS)
    assert text_of(".env.example").partition("\n\n")[2] == f"{expected}\n"


def test_every_variable_that_any_file_names_is_one_of_ours():
    files = ["Makefile", "Dockerfile", "docker-compose.yml", ".ci/run", *map(str, ROOT.glob("docs/**/*.md"))]
    for path in files:
        named = set(re.findall(r"\bRXSTORE_[A-Z_]+\b", text_of(path)))
        assert {name for name in named if not name.startswith(TEST_PREFIX)} <= NAMES, path

"""What the environment says, and what it must not say."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime

import falcon
import pytest

from query_api.database import read_only_engine
from query_api.server import QuietLogger, check_loopback
from query_api.settings import ApiSettings, fixed_clock
from query_api.wsgi import InvalidSetting, api_settings, application

URL = "postgresql://reader:secret@127.0.0.1:1/rx"


def test_an_empty_environment_means_the_defaults():
    settings = api_settings({})

    assert settings == ApiSettings(clock=settings.clock)
    assert abs((settings.clock() - datetime.now(UTC)).total_seconds()) < 5


def test_the_environment_chooses():
    settings = api_settings(
        {
            "RXSTORE_EMPTY_SEARCH": "empty-list",
            "RXSTORE_REQUIRE_USER": "yes",
            "RXSTORE_CHECK_CHARACTER": "lenient",
            "RXSTORE_NOW": "2025-03-01T12:00:00Z",
            "RXSTORE_READY_MAX_AGE_SECONDS": "30",
        }
    )

    assert settings.ready_max_age_seconds == 30

    assert (settings.empty_search, settings.require_user, settings.strict_check_character) == (
        "empty-list",
        True,
        False,
    )
    assert settings.clock() == datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RXSTORE_EMPTY_SEARCH", "maybe"),
        ("RXSTORE_REQUIRE_USER", "true"),
        ("RXSTORE_CHECK_CHARACTER", "off"),
        ("RXSTORE_NOW", "yesterday"),
        ("RXSTORE_READY_MAX_AGE_SECONDS", "0"),
        ("RXSTORE_READY_MAX_AGE_SECONDS", "soon"),
        ("RXSTORE_NOW", "2025-03-01T12:00:00"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value):
    with pytest.raises(InvalidSetting, match=name):
        api_settings({name: value})


def test_the_application_needs_a_database():
    with pytest.raises(InvalidSetting, match="RXSTORE_DATABASE_URL"):
        application({})


def test_the_application_is_built_without_a_connection():
    assert isinstance(application({"RXSTORE_DATABASE_URL": URL}), falcon.App)


def test_a_fixed_clock_stands_still():
    clock = fixed_clock("2025-03-01T12:00:00+01:00")

    assert clock() == clock() == datetime(2025, 3, 1, 11, tzinfo=UTC)


def test_the_engine_hides_parameters_and_takes_a_list_of_hosts_with_ports():
    engine = read_only_engine("postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write")

    assert engine.hide_parameters
    assert engine.url.drivername == "postgresql+psycopg"


@pytest.mark.parametrize("bind", ["127.0.0.1:8443", "127.8.9.10:1", "localhost:8443", "[::1]:8443"])
def test_plain_http_may_be_served_on_loopback(bind):
    check_loopback(bind)


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:8443", "192.0.2.1:8443", "[::]:8443", "rx.example:80", "[::ffff:1.2.3.4]:80"]
)
def test_plain_http_is_not_served_to_the_network(bind):
    with pytest.raises(ValueError, match="loopback"):
        check_loopback(bind)


@pytest.mark.parametrize("bind", ["8443", ":8443", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", ""])
def test_an_address_is_a_host_and_a_port(bind):
    with pytest.raises(ValueError, match="HOST:PORT"):
        check_loopback(bind)


@pytest.fixture
def logger():
    from gunicorn.config import Config

    config = Config()
    config.set("errorlog", None)
    return QuietLogger(config)


def test_the_server_does_not_log_the_request_line_of_what_is_no_http(logger, caplog):
    logger.warning("Invalid request from ip=127.0.0.1: Invalid request line: '/mm/prescriptions?nhsNumber=9912003489'")

    assert [record.getMessage() for record in caplog.records] == ["a request that is no valid HTTP was refused"]


def test_the_server_logs_its_other_warnings(logger, caplog):
    logger.warning("Worker (pid:%s) was sent %s!", 1, "SIGKILL")

    assert caplog.records[0].getMessage() == "Worker (pid:1) was sent SIGKILL!"


def test_the_server_does_not_log_the_uri_of_a_request_that_fails(logger, caplog):
    try:
        raise ValueError("9912003489")
    except ValueError:
        logger.exception("Error handling request %s %s", "GET", "/mm/prescriptions?nhsNumber=9912003489")

    (record,) = caplog.records
    assert record.getMessage().startswith("Error handling request: ValueError < test_query_api_settings.py")
    assert "9912003489" not in caplog.text


def test_the_server_logs_an_error_without_a_message(logger, caplog):
    logger.exception(KeyError("9912003489"))

    assert caplog.records[0].getMessage() == "error: unknown"


def test_the_server_has_no_debug_lines(logger, caplog):
    caplog.set_level("DEBUG")
    logger.debug("GET /mm/prescriptions/3AF2CB-C86002-0000BX")

    assert caplog.records == []


def test_the_address_of_the_database_may_stand_in_a_file(tmp_path):
    (tmp_path / "url").write_text(f"{URL}\n")

    assert isinstance(application({"RXSTORE_DATABASE_URL_FILE": str(tmp_path / "url")}), falcon.App)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RXSTORE_DATABASE_URL": URL, "RXSTORE_DATABASE_URL_FILE": "/none"}, "are both set"),
        ({"RXSTORE_DATABASE_URL_FILE": "/none"}, "RXSTORE_DATABASE_URL_FILE names /none, which cannot be read"),
        ({"RXSTORE_DATABASE_URL": "postgresql://u:sec%zzret@h/db"}, "RXSTORE_DATABASE_URL must be"),
    ],
)
def test_an_address_that_cannot_be_had_is_an_error_without_a_password(environment, said):
    with pytest.raises(InvalidSetting, match=said) as refused:
        application(environment)

    assert "ret" not in "".join(traceback.format_exception(refused.value)).partition("InvalidSetting")[2]

"""Every variable: where it comes from, what it may be, and what is never shown of it."""

from __future__ import annotations

import traceback
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rxstore.errors import WrongUse
from rxstore.settings import SETTINGS, Bind, Settings, load, without_password

NO_FILE = Path("there-is-no-such-file")


def loaded(**environ: str) -> Settings:
    return load({f"RXSTORE_{name}": value for name, value in environ.items()}, NO_FILE)


def test_the_table_and_the_fields_of_settings_agree():
    assert [setting.field for setting in SETTINGS] == [field.name for field in fields(Settings)]


def test_with_nothing_set_every_setting_has_its_default():
    settings = loaded()
    assert settings.topic == "prescription-events"
    assert settings.http_bind == Bind("127.0.0.1", 8443)
    assert settings.metrics_bind is None
    assert settings.require_user is False
    assert settings.max_value_bytes == 262_144


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.default], ids=lambda s: s.name)
def test_writing_the_default_down_changes_nothing(setting):
    assert load({setting.name: setting.default}, NO_FILE) == loaded()


def test_the_environment_wins_over_the_env_file(tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text("RXSTORE_TOPIC=from-the-file\nRXSTORE_GROUP_ID=from-the-file\nOTHER=1\n")
    settings = load({"RXSTORE_TOPIC": "from-the-environment"}, env_file)
    assert settings.topic == "from-the-environment"
    assert settings.group_id == "from-the-file"


def test_a_dollar_in_the_env_file_stays_a_dollar(tmp_path):
    env_file = tmp_path / ".env"
    env_file.write_text("RXSTORE_DATABASE_URL=postgresql://u:pa${HOME}ss@h/db\n")
    assert load({}, env_file).database() == "postgresql://u:pa${HOME}ss@h/db"


def test_an_empty_value_is_none():
    assert loaded(TOPIC="").topic == "prescription-events"


def test_an_unknown_name_is_an_error_that_suggests_the_nearest():
    with pytest.raises(WrongUse, match=r"RXSTORE_TOPICS is not a setting; did you mean RXSTORE_TOPIC\?"):
        loaded(TOPICS="x")


def test_variables_of_the_tests_are_not_settings():
    assert loaded(TEST_DATABASE_URL="postgresql://h/db") == loaded()


def test_variables_of_others_are_not_looked_at():
    assert load({"PATH": "/bin", "RX_STORE": "1"}, NO_FILE) == loaded()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DATABASE_URL", "mysql://u:p@h/db", "must be postgresql://"),
        ("DATABASE_URL", "host=h", "must be postgresql://"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:1,b", "must be host:port,host:port"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS", "must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
        ("KAFKA_SSL_CAFILE", "/no/such/file", "must be the path of a file that can be read"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI", "must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
        ("TOPIC", "two words", "must be the name of a topic"),
        ("TOPIC", "..", "must be the name of a topic"),
        ("PARTITIONER", "random", "must be murmur2 or crc32"),
        ("GROUP_ID", "two words", "must be up to 200 characters without spaces"),
        ("GROUP_INSTANCE_ID", "a b", "must be letters, digits"),
        ("SESSION_TIMEOUT_MS", "100", "must be a whole number from 3000 to 1800000"),
        ("BATCH_RECORDS", "0", "must be a whole number from 1 to 100000"),
        ("BATCH_RECORDS", "1e3", "must be a whole number"),
        ("MAX_VALUE_BYTES", "-1", "must be a whole number"),
        ("HTTP_BIND", "8443", "must be host:port"),
        ("HTTP_BIND", "127.0.0.1:99999", "must be host:port"),
        ("CHECK_CHARACTER", "no", "must be strict or lenient"),
        ("EMPTY_SEARCH", "1", "must be not-found or empty-list"),
        ("REQUIRE_USER", "true", "must be yes or no"),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error"),
        ("LOG_FORMAT", "xml", "must be auto, json or text"),
        ("METRICS_BIND", "on", "must be host:port"),
        ("NOW", "2026-03-01T09:00:00", "must be an RFC 3339 instant"),
        ("NOW", "yesterday", "must be an RFC 3339 instant"),
    ],
)
def test_a_malformed_value_is_refused_with_what_was_expected(name, value, expected):
    with pytest.raises(WrongUse, match=f"RXSTORE_{name} {expected}") as refused:
        loaded(**{name: value})
    assert refused.value.exit_code == 2


# secrets from files ---------------------------------------------------------------------------------------------------

SECRET = "pass phrase"
FROM_FILE = [
    ("DATABASE_URL", "postgresql://u:pass%20phrase@h/db", "database_url"),
    ("KAFKA_SASL_PASSWORD", SECRET, "kafka_sasl_password"),
]


def test_every_setting_that_holds_a_secret_can_come_from_a_file():
    holds = {setting.name for setting in SETTINGS if setting.secret or "password" in setting.meaning}
    assert {setting.name for setting in SETTINGS if setting.may_be_file} == holds


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize(("name", "value", "field"), FROM_FILE)
def test_a_secret_is_what_its_file_holds_without_the_newline_at_its_end(tmp_path, name, value, field, end):
    path = tmp_path / "secret"
    path.write_bytes((value + end).encode())
    assert getattr(loaded(**{f"{name}_FILE": str(path)}), field) == value


def test_the_env_file_may_name_the_file_of_a_secret(tmp_path):
    (tmp_path / "secret").write_text(" begins and ends with a space \n")
    env_file = tmp_path / ".env"
    env_file.write_text(f"RXSTORE_KAFKA_SASL_PASSWORD_FILE={tmp_path / 'secret'}\n")
    assert load({}, env_file).kafka_sasl_password == " begins and ends with a space "


@pytest.mark.parametrize(("name", "value", "field"), FROM_FILE)
def test_a_secret_in_both_forms_is_an_error_that_names_both(tmp_path, name, value, field):
    (tmp_path / "secret").write_text(value)
    env_file = tmp_path / ".env"
    env_file.write_text(f"RXSTORE_{name}_FILE={tmp_path / 'secret'}\n")
    with pytest.raises(WrongUse, match=f"RXSTORE_{name} and RXSTORE_{name}_FILE are both set") as refused:
        load({f"RXSTORE_{name}": value}, env_file)
    assert "phrase" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "must hold one line"),
        (b"\n", "must hold one line"),
        (b"pass phrase\nand more", "must hold one line"),
        (b"pass phrase\0", "must hold one line"),
        (b"pass phrase" * 10_000, "must hold one line"),
        (b"pass phrase\xff", "is not text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_secret_is_an_error_that_names_it_and_shows_nothing_of_it(tmp_path, content, said):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WrongUse, match=f"RXSTORE_KAFKA_SASL_PASSWORD_FILE names {path}, which {said}") as refused:
        loaded(KAFKA_SASL_PASSWORD_FILE=str(path))
    assert refused.value.exit_code == 2
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_directory_is_no_file_of_a_secret(tmp_path):
    with pytest.raises(WrongUse, match="cannot be read: Is a directory"):
        loaded(KAFKA_SASL_PASSWORD_FILE=str(tmp_path))


def test_what_is_no_secret_has_no_file():
    with pytest.raises(WrongUse, match=r"RXSTORE_TOPIC_FILE is not a setting; did you mean RXSTORE_TOPIC\?"):
        loaded(TOPIC_FILE="/etc/hostname")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se%zzcret@h/db",
        "postgresql://u:secret@[::1/db",
        "postgresql://u:secret@h/db?secret",
        "mysql://u:secret@h/db",
    ],
)
def test_a_url_that_cannot_be_read_is_an_error_that_shows_nothing_of_it(tmp_path, url):
    path = tmp_path / "database"
    path.write_text(url)
    with pytest.raises(WrongUse, match=f"DATABASE_URL \\(from the file {path}\\) must be postgresql://") as refused:
        loaded(DATABASE_URL_FILE=str(path))
    assert "cret" not in "".join(traceback.format_exception(refused.value)).replace("/secret", "")


def test_a_missing_setting_is_named_when_it_is_needed():
    with pytest.raises(WrongUse, match=r"RXSTORE_DATABASE_URL is not set .* or RXSTORE_DATABASE_URL_FILE"):
        loaded().database()
    with pytest.raises(WrongUse, match="RXSTORE_KAFKA_BOOTSTRAP_SERVERS is not set"):
        loaded().kafka()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_of_a_database_url_is_understood(scheme):
    settings = loaded(DATABASE_URL=f"{scheme}://u:p@h/db?sslmode=require")
    assert settings.database() == "postgresql://u:p@h/db?sslmode=require"


def test_an_address_may_be_ipv6():
    assert loaded(HTTP_BIND="[::1]:8080").http_bind == Bind("::1", 8080)
    assert str(Bind("::1", 8080)) == "[::1]:8080"


def test_the_instant_of_now_is_in_utc():
    assert loaded(NOW="2026-03-01T10:00:00+01:00").now == datetime(2026, 3, 1, 9, tzinfo=UTC)


def test_clients_of_the_brokers_get_what_is_set_and_no_more():
    assert loaded(KAFKA_BOOTSTRAP_SERVERS="a:1, b:2").kafka() == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "PLAINTEXT",
    }


def test_logging_in_to_the_brokers_needs_a_user():
    sasl = {"KAFKA_BOOTSTRAP_SERVERS": "a:1", "KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "PLAIN"}
    with pytest.raises(WrongUse, match="RXSTORE_KAFKA_SASL_USERNAME is not set"):
        loaded(**sasl).kafka()
    options = loaded(**sasl, KAFKA_SASL_USERNAME="u", KAFKA_SASL_PASSWORD="p").kafka()
    assert options["sasl_plain_password"] == "p"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://u:se@cr/et@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db?password=secret&sslmode=require", "postgresql://u@h/db?password=***&sslmode=require"),
        ("postgresql://:secret@h/db", "postgresql://:***@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("not a URL", "not a URL"),
    ],
)
def test_a_password_inside_a_url_is_never_shown(url, shown):
    assert without_password(url) == shown


def test_settings_print_no_value():
    assert "secret" not in repr(loaded(DATABASE_URL="postgresql://u:secret@h/db"))


def test_a_malformed_database_url_is_not_repeated_in_the_message():
    with pytest.raises(WrongUse) as refused:
        loaded(DATABASE_URL="mysql://u:secret@h/db")
    assert "secret" not in str(refused.value)

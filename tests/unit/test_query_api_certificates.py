"""What is known of a certificate, and how it may be written."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from urllib.parse import quote

import pytest

from query_api import certificates
from query_api.certificates import Revocations, Unreadable
from query_api.transport import BehindProxy, MutualTls, TlsFiles, Unusable
from rxstore.authority import Authority


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def issued(authority):
    return authority.client("system.example")


def test_the_fingerprint_is_the_one_that_openssl_prints(issued):
    printed = subprocess.run(
        ["openssl", "x509", "-in", issued.certfile, "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.partition("=")[2]
    found = certificates.from_pem(issued.certfile.read_bytes())
    assert found.fingerprint == certificates.normal_fingerprint(printed)
    assert (found.subject, found.issuer) == ("CN=system.example", "CN=rxstore demonstration authority")


@pytest.mark.parametrize("form", ["{}", "sha256:{}", " {}\n"])
def test_a_fingerprint_may_be_written_as_people_do(form):
    assert certificates.normal_fingerprint(form.format("AB" * 32)) == "ab" * 32


@pytest.mark.parametrize("given", ["", "ab", "zz" * 32, "ab" * 33])
def test_what_is_no_fingerprint_is_refused(given):
    with pytest.raises(Unreadable, match="64 hex digits"):
        certificates.normal_fingerprint(given)


def test_nginx_and_aws_hand_on_escaped_pem(issued):
    found = certificates.from_pem(issued.certfile.read_bytes())
    assert certificates.from_header(quote(issued.certfile.read_text())) == found


def test_envoy_hands_on_the_certificate_among_other_things(issued):
    found = certificates.from_pem(issued.certfile.read_bytes())
    escaped = quote(issued.certfile.read_text(), safe="")
    header = f'By=spiffe://api;Hash={found.fingerprint};Cert="{escaped}";Subject="CN=x";URI='
    assert certificates.from_header(header) == found


def test_two_certificates_in_a_header_are_refused(issued):
    escaped = quote(issued.certfile.read_text(), safe="")
    for header in (f'Cert="{escaped}",Cert="{escaped}"', f"{escaped},{escaped}", escaped + escaped):
        with pytest.raises(Unreadable):
            certificates.from_header(header)


@pytest.mark.parametrize("header", ["", "x", "%00", 'Cert=""', "-----BEGIN CERTIFICATE-----", "a" * 40_000])
def test_what_is_no_certificate_is_refused(header):
    with pytest.raises(Unreadable):
        certificates.from_header(header)


def test_what_is_no_der_is_refused():
    with pytest.raises(Unreadable):
        certificates.from_der(b"nonsense")


def test_a_revocation_list_names_certificates_by_issuer_and_number(authority, issued, tmp_path):
    other = authority.client("other")
    lists = Revocations.read(authority.revoke([issued], tmp_path / "crl.pem"))
    assert lists.names(certificates.from_pem(issued.certfile.read_bytes()))
    assert not lists.names(certificates.from_pem(other.certfile.read_bytes()))
    assert lists.next_update is not None


def test_several_revocation_lists_may_stand_in_one_file(authority, issued, tmp_path):
    another = Authority(tmp_path, name="another")
    theirs = another.client("theirs")
    both = tmp_path / "both.pem"
    both.write_bytes(
        authority.revoke([issued], tmp_path / "a.pem").read_bytes()
        + another.revoke([theirs], tmp_path / "b.pem").read_bytes()
    )
    lists = Revocations.read(both)
    assert all(lists.names(certificates.from_pem(one.certfile.read_bytes())) for one in (issued, theirs))


def test_a_file_without_a_list_is_refused(tmp_path):
    path = tmp_path / "crl.pem"
    path.write_text("nothing")
    with pytest.raises(Unreadable, match="holds no revocation list"):
        Revocations.read(path)


def files(authority: Authority, **others) -> TlsFiles:
    server = authority.server("server", ["localhost"])
    return TlsFiles(
        **{"certfile": server.certfile, "keyfile": server.keyfile, "client_cafile": authority.certfile} | others
    )


def test_a_list_that_is_out_of_date_is_refused_at_the_start(authority, tmp_path):
    crlfile = authority.revoke([], tmp_path / "crl.pem", lasts=-timedelta(minutes=1))
    with pytest.raises(Unusable, match="should have been replaced"):
        MutualTls(files(authority, crlfile=crlfile))


def test_an_authority_that_is_none_is_refused_at_the_start(authority, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    with pytest.raises(Unusable, match=r"ca\.pem holds no authority"):
        MutualTls(files(authority, client_cafile=path))


def test_a_certificate_that_ends_while_its_connection_is_open_counts_no_more(authority, monkeypatch):
    transport = MutualTls(files(authority))
    shown = certificates.from_pem(authority.client("short").certfile.read_bytes())
    assert transport.identity(shown, {}).problem is None
    monkeypatch.setattr(certificates, "now", lambda: shown.not_after + timedelta(seconds=1))
    assert transport.identity(shown, {}).problem == "its certificate is out of date"


def test_a_proxy_is_asked_for_the_header_that_was_configured(issued):
    transport = BehindProxy(header="X-Amzn-Mtls-Clientcert")
    escaped = quote(issued.certfile.read_text())
    assert transport.identity(None, {"HTTP_X_AMZN_MTLS_CLIENTCERT": escaped}).certificate is not None
    assert transport.identity(None, {"HTTP_X_CLIENT_CERT": escaped}).certificate is None


def test_a_revoked_certificate_that_a_proxy_hands_on_does_not_count(authority, issued, tmp_path):
    transport = BehindProxy(crlfile=authority.revoke([issued], tmp_path / "crl.pem"))
    given = {"HTTP_X_CLIENT_CERT": quote(issued.certfile.read_text())}
    assert transport.identity(None, given).problem == "its certificate is revoked"

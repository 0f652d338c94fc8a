"""Redirects, certificates, proxies and settings of a download."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import faulty_server as faults
import pytest
import requests
from faulty_server import FaultyServer
from fetch_tools import CONTENT, NAME, QUICK, note, nothing_left, reason, record

from proxylessnas.errors import OfflineError, WeightsFetchError
from proxylessnas.utils.paths import is_offline
from proxylessnas.utils.text import shown_url
from proxylessnas.weights.download import FetchFailure, Policy, download, open_url, redirect_target
from proxylessnas.weights.file_spec import source_urls


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faults.faulty_server({NAME: CONTENT}) as running:
        yield running


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://b.example/x", "https://b.example/x"),
        ("/x", "https://a.example/x"),
        ("//c.example/x", "https://c.example/x"),
        ("http://a.example/x", None),
        ("HTTP://a.example/x", None),
        ("file:///etc/passwd", None),
        ("ftp://a.example/x", None),
        ("data:,x", None),
        ("http://[::1", None),
        ("", None),
        (None, None),
    ],
)
def test_redirects_from_https(location: str | None, target: str | None) -> None:
    if target is not None:
        assert redirect_target("https://a.example/w.pth", location) == target
    else:
        with pytest.raises(FetchFailure) as caught:
            redirect_target("https://a.example/w.pth", location)
        assert not caught.value.retry


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a fresh key and a certificate that nobody trusts."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    try:
        made = subprocess.run(
            [*command.split(), "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-"],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl command to make a certificate with")
    path.write_bytes(made.stdout)
    return path


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates(
    variable: str, certificate: Path, server: FaultyServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with faults.faulty_server({NAME: CONTENT}, certificate) as secure:
        url = secure.plan(NAME, faults.good)
        with pytest.raises(WeightsFetchError, match=r"certificate refused.*REQUESTS_CA_BUNDLE") as caught:
            download(record(url), tmp_path / "w.pth", policy=QUICK)
        assert "attempts" not in str(caught.value)
        note("untrusted certificate", f"`{reason(caught.value)[:60]}...`")

        monkeypatch.setenv(variable, str(certificate))
        download(record(url), tmp_path / "w.pth", policy=QUICK)
        note(f"site's own CA in {variable}", "accepted")

        down = secure.plan(f"down/{NAME}", faults.status(302, Location=f"{server.url}/{NAME}"))
        with pytest.raises(WeightsFetchError, match=r"redirect from https to http://127.* refused"):
            download(record(down), tmp_path / "v.pth", policy=QUICK)
        assert not server.seen
        note("redirect from https to http", "refused, the http server is never asked")


def test_proxy_is_used(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("http_proxy", server.url)
    url = f"http://weights.invalid/zoo/{NAME}"
    download(record(url), tmp_path / "w.pth", policy=QUICK)
    assert server.seen[0].path == url
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    download(record(server.plan(NAME, faults.good)), tmp_path / "v.pth", policy=QUICK)
    assert server.seen[1].path == f"/{NAME}"
    note("proxy in the environment", "used; no_proxy too")


def test_password_in_a_mirror_is_sent_and_never_shown(server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.status(403)).replace("://", "://me:s3cret@")
    with pytest.raises(WeightsFetchError) as caught:
        download(record(url), tmp_path / "w.pth", policy=QUICK)
    assert server.seen[0].headers["authorization"] == "Basic bWU6czNjcmV0"
    assert "s3cret" not in str(caught.value)
    assert shown_url(url) in str(caught.value)


@pytest.mark.parametrize(
    "base",
    [
        "ftp://user:s3cret@host/x",
        "user:s3cret@host/x",
        "http://user:s3cret@127.0.0.1:99999/x",
        "http://user:s3cret@[::1/x",
        "http://user:s3cret@127.0.0.1:abc/x",
        "http://user:pa/s3cret@127.0.0.1:1/x",
        "http://user:pa?s3cret@127.0.0.1:1/x",
        "http://user:pa s3cret@127.0.0.1:1/x",
        "http://user:pa,s3cret@127.0.0.1:1/x",
        "http://user:s3cret",
        "http://127.0.0.1:1/x?token=s3cret",
        "http://127.0.0.1:1/x?who=a@b&token=s3cret",
    ],
)
def test_secrets_of_a_mirror_are_in_no_message(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", base)
    weights = record("https://unused.invalid/net.pth")
    with caplog.at_level("DEBUG", "proxylessnas"), pytest.raises(WeightsFetchError) as caught:
        download(weights, tmp_path / "w.pth", policy=Policy(timeout_s=0.5, retries=0))
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + caplog.text
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    with pytest.raises(WeightsFetchError) as caught:
        download(weights, tmp_path / "w.pth")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_secrets_of_a_proxy_are_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http://user:s3cret@127.0.0.1:99999", "user:s3cret@", "http://user:s3cret@127.0.0.1:1"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(WeightsFetchError) as caught:
            download(record("http://weights.invalid/x"), tmp_path / "w.pth", policy=QUICK)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_partial_file_keeps_no_secret(tmp_path: Path) -> None:
    name = f"{NAME}?token=s3cret"
    with faults.faulty_server({name: CONTENT}) as server:
        url = server.plan(name, faults.part(100)).replace("://", "://me:s3cret@")
        with pytest.raises(WeightsFetchError):
            download(record(url), tmp_path / "w.pth", policy=Policy(retries=0))
    kept = [file.read_text(errors="replace") for file in tmp_path.iterdir()]
    assert any("etag" in text for text in kept)
    assert not any("s3cret" in text for text in kept)


@pytest.mark.parametrize(
    "url", ["http://[", "http://", "http://127.0.0.1:99999/x", "nonsense", "http://a b/"]
)
def test_nonsense_addresses_fail_cleanly(url: str) -> None:
    with requests.Session() as session, pytest.raises(FetchFailure):
        open_url(session, url, {}, 0.4)


# --- settings ------------------------------------------------------------------------------------------


def test_base_url_replaces_the_sources(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan(f"one/{NAME}", faults.status(404))
    monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", f" {server.url}/one/, {server.url}/two ,{server.url}/two")
    weights = record("https://unused.invalid/net.pth")
    assert source_urls(weights) == (f"{server.url}/one/{NAME}", f"{server.url}/two/{NAME}")
    download(weights, tmp_path / "w.pth", policy=QUICK)
    assert [seen.path for seen in server.seen] == [f"/one/{NAME}", f"/two/{NAME}"]
    monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", f"{server.url}/one/?token=a")
    assert source_urls(weights) == (f"{server.url}/one/{NAME}?token=a",)


@pytest.mark.parametrize("value", ["ftp://a", "/mnt/zoo", "https://", "https:///x", "http:/a"])
def test_base_url_must_be_http(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", value)
    with pytest.raises(WeightsFetchError, match="PROXYLESSNAS_WEIGHTS_URL"):
        source_urls(record("https://a.example/net.pth"))


def test_policy_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Policy.from_environment() == Policy()
    monkeypatch.setenv("PROXYLESSNAS_TIMEOUT", "2.5")
    monkeypatch.setenv("PROXYLESSNAS_RETRIES", "0")
    assert Policy.from_environment() == Policy(timeout_s=2.5, retries=0)
    for variable, bad in (("TIMEOUT", "soon"), ("TIMEOUT", "0"), ("TIMEOUT", "nan"), ("RETRIES", "-1")):
        with monkeypatch.context() as m:
            m.setenv(f"PROXYLESSNAS_{variable}", bad)
            with pytest.raises(WeightsFetchError, match=f"PROXYLESSNAS_{variable}"):
                Policy.from_environment()


def test_offline(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "false", "No", "off"):
        monkeypatch.setenv("PROXYLESSNAS_OFFLINE", value)
        assert not is_offline()
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    weights, dest = record(server.plan(NAME, faults.good)), tmp_path / "no" / "w.pth"
    with pytest.raises(OfflineError) as caught:
        download(weights, dest)
    for part in (weights.sources[0], weights.sha256, str(dest)):
        assert str(part) in str(caught.value)
    assert not server.seen
    assert nothing_left(tmp_path)
    note(
        "PROXYLESSNAS_OFFLINE=1, not cached",
        "OfflineError at once: address, digest, exact path; no folder made",
    )

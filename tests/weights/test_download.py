"""The downloader against a real server that misbehaves."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import faulty_server as faults
import pytest
from faulty_server import FaultyServer
from fetch_tools import (
    CONTENT,
    FLIPPED,
    HALF,
    IMPATIENT,
    NAME,
    QUICK,
    dead_url,
    note,
    nothing_left,
    reason,
    record,
)

from proxylessnas.errors import WeightsFetchError
from proxylessnas.weights.download import Policy, download

HTML = b"\n <!DOCTYPE html><html><body>Page not found</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faults.faulty_server({NAME: CONTENT}) as running:
        yield running


# --- faults that call for the next source --------------------------------------------------------------

GIVEN_UP = {
    "404": (faults.status(404), "HTTP 404", False),
    "403": (faults.status(403), "HTTP 403", False),
    "410": (faults.status(410), "HTTP 410", False),
    "HTML page with 200": (faults.content(HTML, "text/html"), "a web page came instead of the file", False),
    "HTML page as binary": (faults.content(HTML), "a web page came instead of the file", False),
    "Git LFS pointer": (faults.content(LFS), "a Git LFS pointer came instead of the file", False),
    "one bit flipped": (faults.content(FLIPPED), "wrong file: sha256 is ", False),
    "shorter file": (faults.content(CONTENT[:-7]), "wrong file: 307,193 bytes announced", False),
    "longer file announced": (faults.content(CONTENT + b"x"), "wrong file: 307,201 bytes announced", False),
    "endless body without length": (
        faults.chunked(data=CONTENT * 2), "the body is larger than the 307,200 bytes expected", False,
    ),
    "empty body": (faults.content(b""), "the answer is empty", False),
    "204 without body": (faults.status(204), "HTTP 204", False),
    "redirect to itself": (None, "more than 5 redirects", False),
    "redirect without target": (faults.status(302), "redirect without a Location", False),
    "redirect to ftp": (faults.status(302, Location="ftp://127.0.0.1/x"), "only http and https", False),
    "redirect to a file": (faults.status(302, Location="file:///etc/hostname"), "only http and https", False),
    "500 for ever": (faults.status(500), "HTTP 500 (3 attempts)", True),
    "503 for ever": (faults.status(503), "HTTP 503 (3 attempts)", True),
    "429 for ever": (faults.status(429), "HTTP 429 (3 attempts)", True),
    "reset before the headers": (faults.reset, "the connection was reset (3 attempts)", True),
    "no answer at all": (faults.hang, "timed out while waiting for data (3 attempts)", True),
}  # fmt: skip


@pytest.mark.parametrize("fault", GIVEN_UP)
def test_next_source(fault: str, server: FaultyServer, tmp_path: Path) -> None:
    behaviour, expected, retried = GIVEN_UP[fault]
    behaviour = behaviour or faults.status(302, Location=f"{server.url}/bad/{NAME}")
    policy = IMPATIENT if fault == "no answer at all" else QUICK
    bad, mirror = server.plan(f"bad/{NAME}", behaviour), server.plan(f"mirror/{NAME}", faults.good)
    dest = tmp_path / "cache" / "w.pth"

    with pytest.raises(WeightsFetchError) as caught:
        download(record(bad), dest, policy=policy)
    assert expected in reason(caught.value)
    for part in (bad, record().sha256, str(dest), "PROXYLESSNAS_WEIGHTS_URL"):
        assert str(part) in str(caught.value)
    assert nothing_left(dest.parent)
    redirects = 6 if "itself" in fault else 1
    assert len(server.seen) == (policy.retries + 1 if retried else redirects)

    assert download(record(bad, mirror), dest, policy=policy).read_bytes() == CONTENT
    assert nothing_left(dest.parent, "w.pth")
    note(fault, f"`{reason(caught.value)[:70]}`; next source used; alone: error, no file left")


def test_all_sources_are_listed(server: FaultyServer, tmp_path: Path) -> None:
    bad, wrong = (
        server.plan(f"a/{NAME}", faults.status(404)),
        server.plan(f"b/{NAME}", faults.content(FLIPPED)),
    )
    with pytest.raises(WeightsFetchError) as caught:
        download(record(bad, wrong, dead_url()), tmp_path / "w.pth", policy=QUICK)
    assert reason(caught.value, 0) == "HTTP 404"
    actual = hashlib.sha256(FLIPPED).hexdigest()
    assert reason(caught.value, 1) == f"wrong file: sha256 is {actual}, expected {record().sha256}"
    assert reason(caught.value, 2) == "connection refused (2 attempts)"
    assert isinstance(caught.value, OSError)
    text = str(caught.value)
    for way in ("--weights FILE", "proxyless_cifar10_demo"):
        assert 0 < text.find(way) < text.index("http://"), "first what needs no network"


def test_refused_host_gives_way_to_the_next(server: FaultyServer, tmp_path: Path) -> None:
    slow = dataclasses.replace(QUICK, backoff_s=600.0)  # would be noticed
    start = time.monotonic()
    weights = record(dead_url(), server.plan(NAME, faults.good))
    download(weights, tmp_path / "w.pth", policy=slow)
    assert time.monotonic() - start < 300
    note("connection refused", "next source at once, without any pause")


# --- faults that pass ----------------------------------------------------------------------------------

PASSING = {
    "503 twice, then fine": ([faults.status(503), faults.status(503), faults.good], 0),
    "truncated, then fine": ([faults.part(HALF), faults.good], HALF),
    "truncated twice, then fine": ([faults.part(1000), faults.part(HALF), faults.good], HALF),
    "reset in the middle": ([faults.part(HALF, then=faults.reset), faults.good], None),
    "stall in the middle": ([faults.part(HALF, then=faults.hang), faults.good], HALF),
    "a byte now and then": ([faults.part(HALF, then=faults.drip), faults.good], None),
    "chunks break off": ([faults.chunked(HALF), faults.good], None),
    "old server breaks off": ([faults.until_close(HALF), faults.good], HALF),
    "range ignored": ([faults.part(HALF), faults.without_ranges], None),
    "wrong range": ([faults.part(HALF), faults.wrong_range, faults.good], None),
    "416 to a range": ([faults.part(HALF), faults.status(416), faults.good], None),
    "chunked without length": ([faults.chunked()], None),
    "until close without length": ([faults.until_close()], None),
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING)
def test_same_source_again(fault: str, server: FaultyServer, tmp_path: Path) -> None:
    plan, resumed_at = PASSING[fault]
    policy = IMPATIENT if fault in ("stall in the middle", "a byte now and then") else QUICK
    url = server.plan(NAME, *plan)
    download(record(url), tmp_path / "w.pth", policy=policy)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert nothing_left(tmp_path, "w.pth")
    assert len(server.seen) == len(plan)
    ranges = [seen.headers.get("range") for seen in server.seen]
    if resumed_at:
        assert ranges[-1] == f"bytes={resumed_at}-"
        assert server.seen[-1].sent == len(CONTENT) - resumed_at
    note(
        fault,
        f"right file after {len(plan)} request(s)" + (", resumed" if any(ranges) else ""),
    )


def test_part_from_a_broken_source_is_completed_by_the_next(server: FaultyServer, tmp_path: Path) -> None:
    first = server.plan(f"a/{NAME}", faults.part(HALF), faults.status(404))
    second = server.plan(f"b/{NAME}", faults.good)
    download(record(first, second), tmp_path / "w.pth", policy=QUICK)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.seen[1].headers["if-range"] == faults.ETAG
    assert "if-range" not in server.seen[2].headers  # another host's tag means nothing
    assert server.seen[2].sent == len(CONTENT) - HALF
    note("truncated, then 404", "the next source sends only the missing half")


def test_resumed_file_wrong_starts_again(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(b"\0" * HALF)  # left by something else
    download(record(server.plan(NAME, faults.good)), tmp_path / "w.pth", policy=QUICK)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert [seen.headers.get("range") for seen in server.seen] == [f"bytes={HALF}-", None]
    note("the resumed file is wrong", "thrown away, fetched again from its start")


def test_changed_file_is_not_resumed(server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.part(HALF), faults.good)
    once = dataclasses.replace(QUICK, retries=0)
    with pytest.raises(WeightsFetchError, match=r"broke off \(after 153,600 of 307,200 bytes\)"):
        download(record(url), tmp_path / "w.pth", policy=once)
    assert nothing_left(tmp_path, "w.pth.part", "w.pth.part.json")
    tag = tmp_path / "w.pth.part.json"
    tag.write_text(tag.read_text().replace("v1", "v0"))
    download(record(url), tmp_path / "w.pth", policy=once)
    assert server.seen[-1].headers["if-range"] == '"v0"'
    assert server.seen[-1].status == 200
    assert nothing_left(tmp_path, "w.pth")


@pytest.mark.parametrize(
    "tag", ["", "[]", "[[", '{"url": 1}', '{"url": "URL", "etag": "\\"a\\r\\nX: y\\""}', "\0"]
)
def test_spoiled_tag_file_is_ignored(tag: str, server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.good)
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:HALF])
    (tmp_path / "w.pth.part.json").write_text(tag.replace("URL", url))
    download(record(url), tmp_path / "w.pth", policy=QUICK)
    assert "if-range" not in server.seen[0].headers
    assert nothing_left(tmp_path, "w.pth")


def test_complete_part_needs_no_request(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    download(record(server.plan(NAME, faults.good)), tmp_path / "w.pth", policy=QUICK)
    assert nothing_left(tmp_path, "w.pth")
    assert not server.seen


def test_retry_after_is_honoured(server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.status(429, Retry_After=1), faults.good)
    start = time.monotonic()
    download(record(url), tmp_path / "w.pth", policy=QUICK)
    assert time.monotonic() - start >= 1
    note("429 with Retry-After: 1", "right file after the second asked for")


@pytest.mark.parametrize(
    "value",
    ["1000000", format_datetime(datetime.now(timezone.utc) + timedelta(days=9))],
    ids=["seconds", "date"],
)
def test_retry_after_is_bounded(value: str, server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.status(503, Retry_After=value), faults.good)
    start = time.monotonic()
    policy = dataclasses.replace(QUICK, max_wait_s=0.2)
    download(record(url), tmp_path / "w.pth", policy=policy)
    assert time.monotonic() - start >= 0.2  # and not the days that were asked for


@pytest.mark.parametrize("value", ["soon", "-1", "", "9" * 400, "Wed, 99 Foo 2020"])
def test_odd_retry_after_is_ignored(value: str, server: FaultyServer, tmp_path: Path) -> None:
    url = server.plan(NAME, faults.status(503, Retry_After=value), faults.good)
    download(record(url), tmp_path / "w.pth", policy=QUICK)


def test_pauses_grow_and_are_bounded() -> None:
    policy = Policy(backoff_s=1.0, max_wait_s=10.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (50, 10.0)):
        pauses = [policy.pause_s(failures, None) for _ in range(20)]
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(set(pauses)) > 1 or failures == 50


def test_redirect_is_followed(server: FaultyServer, tmp_path: Path) -> None:
    server.plan(f"real/{NAME}", faults.good)
    url = server.plan(NAME, faults.status(302, Location=f"/real/{NAME}"))
    download(record(url), tmp_path / "w.pth", policy=QUICK)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    note("redirect", "followed")


def test_git_blob_is_enough(server: FaultyServer, tmp_path: Path) -> None:
    weights = record(server.plan(NAME, faults.part(HALF), faults.good), blob_only=True)
    download(weights, tmp_path / "w.pth", policy=QUICK)
    with pytest.raises(WeightsFetchError, match=r"git blob is [0-9a-f]{40}, expected [0-9a-f]{40}"):
        download(
            record(server.plan(NAME, faults.content(FLIPPED)), blob_only=True),
            tmp_path / "v.pth",
            policy=QUICK,
        )
    assert nothing_left(tmp_path, "w.pth")


def test_unknown_size_is_bounded(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxylessnas.weights.download.MAX_WEIGHTS_BYTES", 100_000)
    for behaviour in (faults.good, faults.chunked()):
        weights = record(server.plan(NAME, behaviour), blob_only=True)
        with pytest.raises(WeightsFetchError, match="100,000"):
            download(weights, tmp_path / "w.pth", policy=QUICK)
        assert nothing_left(tmp_path)

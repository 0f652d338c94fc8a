"""What the tests of fetching have in common.

With PROXYLESSNAS_FAULT_TABLE set to a path, a table of the faults tried and what came of them is written
there.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from proxylessnas.weights.download import Policy
from proxylessnas.weights.record import Weights
from proxylessnas.weights.registry import read_manifest

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
FLIPPED = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
NAME = "net.pth"
HALF = len(CONTENT) // 2
QUICK = Policy(timeout_s=10.0, retries=2, backoff_s=0.01)
IMPATIENT = Policy(timeout_s=1.5, retries=2, backoff_s=0.01)  # where waiting is what is tested


def record(*sources: str, content: bytes = CONTENT, blob_only: bool = False) -> Weights:
    """Return a manifest record for ``content`` whose sources are on this machine."""
    known = dataclasses.replace(
        read_manifest()["proxyless_w025_r112"],
        sources=sources,
        filename=NAME,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        git_blob=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    )
    return dataclasses.replace(known, size=None, sha256=None) if blob_only else known


def reason(error: BaseException, index: int = 0) -> str:
    """Return what the error says about the source of this index."""
    listed = [line for line in str(error).splitlines() if line.startswith("    ")]
    return listed[index].partition(f"{NAME}: ")[2]


def dead_url() -> str:
    """Return an address on this machine where nothing listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"


def nothing_left(folder: Path, *but: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(but)


# The downloader needs no torch, so that a process of its own starts in a moment.
CHILD = """
import json, sys
from pathlib import Path
from proxylessnas.weights.download import download
from proxylessnas.weights.record import Weights
from proxylessnas.errors import ProxylessError
{prepare}
try:
    download(Weights(**json.loads(sys.argv[1])), Path(sys.argv[2]))
except ProxylessError as e:
    sys.exit(f"{type(e).__name__}: {e}")
"""


def as_json(weights: Weights) -> str:
    """Return the fields of a record for another process."""
    fields = {f.name: getattr(weights, f.name) for f in dataclasses.fields(weights)}
    return json.dumps({**fields, "metrics": dict(weights.metrics)})


def child(weights: Weights, dest: Path, prepare: str = "") -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("{prepare}", prepare), as_json(weights), str(dest)],
        cwd=root, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


_TABLE: dict[str, str] = {}
_TABLE_PATH = os.environ.get("PROXYLESSNAS_FAULT_TABLE")  # read now: each test hides the settings


def note(fault: str, outcome: str) -> None:
    """Note a line of the fault table."""
    _TABLE[fault] = outcome


def _write_table(path: str) -> None:
    lines = ["| fault | what came out |", "|---|---|"]
    lines += [f"| {fault} | {outcome} |" for fault, outcome in _TABLE.items()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


if _TABLE_PATH:
    atexit.register(_write_table, _TABLE_PATH)

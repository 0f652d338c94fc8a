"""Load on the service of ``examples/serve.py``, over loopback: requests a second, and how long they take.

    python benchmarks/serve_load.py [--threads 1] [--net proxyless_cifar10_demo] [--seconds 10]

Clients send the next photo when they have the answer to the last (a closed loop): 1, 4 and 16 of them, then 4
and four times as many as the service takes at a time, of whose uploads every fifth is bad in one of 4 ways.
Every answer is checked, where 503 is always right; times are of accepted uploads only. Clients and service
share the processors.
"""

from __future__ import annotations

import collections
import http.client
import io
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import make_parser, start, write_rows
from PIL import Image

from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats.base import format_of
from proxylessnas.deploy.settings import ExportOptions
from proxylessnas.latency.measurement import quantile

ROOT = Path(__file__).resolve().parent.parent
DOG = ROOT / "examples" / "photos" / "cifar10" / "dog.jpg"


def uploads() -> dict[str, tuple[bytes, str, int]]:
    """Return (body, media type, expected status) of each kind of upload."""
    dog, bomb = DOG.read_bytes(), io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    return {
        "good": (dog, "image/jpeg", 200),
        "cut off": (dog[:-3000], "image/jpeg", 400),
        "bomb": (bomb.getvalue(), "image/png", 413),
        "too large": (bytes(13 << 20), "image/jpeg", 413),
        "no image": (b"%PDF", "application/pdf", 415),
    }


def ask(port: int, body: bytes, kind: str) -> tuple[int, float]:
    """Return the status and the seconds it took."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/classify", body, {"Content-Type": kind})
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer.status, time.perf_counter() - begin


def load(port: int, clients: int, seconds: float, bad: bool) -> tuple[list[float], collections.Counter[int]]:
    """Return the seconds of each accepted upload, and how often each status came."""
    kinds = uploads()
    order = ["good"] * 4
    wrong = itertools.cycle(name for name in kinds if name != "good")
    times: list[float] = []
    statuses: collections.Counter[int] = collections.Counter()
    problems: list[str] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end:
            with lock:
                names = [*order, next(wrong)] if bad else order
            for name in names:
                body, kind, expected = kinds[name]
                status, spent = ask(port, body, kind)
                with lock:
                    statuses[status] += 1
                    if status == 200:
                        times.append(spent)
                    if status not in (expected, 503):
                        problems.append(f"{name}: {status}, not {expected}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise SystemExit(f"wrong answers: {collections.Counter(problems)}")
    return times, statuses


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def main() -> None:
    parser = make_parser(__doc__, "serve_load")
    parser.add_argument("--net", default="proxyless_cifar10_demo")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--at-once", type=int, default=8, help="requests that the service takes at a time")
    args = parser.parse_args()
    start(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        format_of(file).write(open_bundle(args.net), file, ExportOptions())
        command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(file), "--port", "0"]
        command += ["--threads", str(args.threads), "--at-once", str(args.at_once)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as service:
            try:
                assert service.stdout is not None
                port = int(service.stdout.readline().rpartition(":")[2])
                load(port, 1, min(1.0, args.seconds), bad=False)  # warm-up
                for clients, bad in (
                    (1, False),
                    (4, False),
                    (16, False),
                    (4, True),
                    (4 * args.at_once, True),
                ):
                    begin = time.perf_counter()
                    times, statuses = load(port, clients, args.seconds, bad)
                    spent = time.perf_counter() - begin
                    rows.append({
                        "net": args.net, "threads": args.threads, "at_once": args.at_once, "clients": clients,
                        "bad": "20 %" if bad else "none",
                        "requests_per_s": round(statuses.total() / spent, 1),
                        "pictures_per_s": round(len(times) / spent, 1),
                        "median_ms": round(1e3 * statistics.median(times), 2),
                        "p99_ms": round(1e3 * quantile(times, 0.99), 2),
                        "longest_ms": round(1e3 * max(times), 2),
                        "statuses": " ".join(f"{status}:{n}" for status, n in sorted(statuses.items())),
                        "memory_mb": round(memory_mb(service.pid)),
                    })  # fmt: skip
                service.send_signal(signal.SIGTERM)
                assert service.wait(30) == 0, "the service did not end well"
            finally:
                service.kill()
    write_rows(args, rows)


if __name__ == "__main__":
    main()

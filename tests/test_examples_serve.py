"""The service of examples/serve.py: answers, refusals, load, the end, and its page in a real browser."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from PIL import Image

import proxylessnas
from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats.base import format_of
from proxylessnas.deploy.settings import ExportOptions

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

REPO = Path(__file__).resolve().parent.parent
PHOTOS = REPO / "examples" / "photos"
DOG = PHOTOS / "cifar10" / "dog.jpg"
MODEL = "proxyless_cifar10_demo"


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], file: Path) -> None:
        assert process.stdout is not None
        self.file = file
        self.process, first = process, process.stdout.readline()
        self.url = first.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Message]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(data) if is_json and data else data, answer.headers

    def post(self, body: bytes, kind: str = "image/jpeg") -> tuple[int, Any, Message]:
        return self.ask("POST", "/classify", body, {"Content-Type": kind})


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which neither torch nor this package can be imported."""
    folder = tmp_path_factory.mktemp("without_torch")
    for name in ("torch", "proxylessnas"):
        (folder / f"{name}.py").write_text(f"raise AssertionError('the service imports {name}')\n")
    path = os.pathsep.join([str(folder), str(REPO / "tests" / "offline")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, without_torch: dict[str, str]) -> Callable[..., Any]:
    """Return what starts a service, a context manager; files are made once."""
    folder = tmp_path_factory.mktemp("nets")

    @contextlib.contextmanager
    def started(*arguments: str, uint8_input: bool = False) -> Iterator[Service]:
        file = folder / f"net{uint8_input}.onnx"
        if not file.exists():
            format_of(file).write(open_bundle(MODEL), file, ExportOptions(uint8_input=uint8_input))
        command = [sys.executable, str(REPO / "examples" / "serve.py"), str(file), "--port", "0", *arguments]
        with (
            tempfile.TemporaryFile("w+", dir=folder) as log,
            subprocess.Popen(
                command, env=without_torch, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            try:
                yield Service(process, file)
            finally:
                process.kill()
                process.wait()
                log.seek(0)
                assert "Traceback" not in log.read()

    return started


@pytest.fixture(scope="module")
def service(start: Callable[..., Any]) -> Iterator[Service]:
    with start() as running:
        yield running


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images() -> dict[str, tuple[str, bytes]]:
    """Return uploads of many kinds, with their media types."""
    dog, cat = (Image.open(path) for path in (DOG, PHOTOS / "cat.jpg"))
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = cat.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(cat.size))
    return {
        "jpeg": ("jpeg", DOG.read_bytes()),
        "not square": ("jpeg", (PHOTOS / "cat.jpg").read_bytes()),
        "upright": ("png", encoded(cat.resize((40, 90)), "PNG")),
        "turned": ("jpeg", encoded(dog.rotate(90, expand=True), "JPEG", exif=turned, quality=95)),
        "grey": ("webp", encoded(dog.convert("L"), "WEBP", lossless=True)),
        "transparent": ("png", encoded(transparent, "PNG")),
        "palette": ("gif", encoded(dog.quantize(64), "GIF")),
        "just its size": ("bmp", encoded(dog.resize((32, 32)), "BMP")),
        "tiny": ("png", encoded(dog.resize((3, 2)), "PNG")),
        "strip": ("png", encoded(dog.resize((8, 2000)), "PNG")),
    }


def same(found: dict[str, Any], expected: list[Any], within: float) -> None:
    assert found["classes"][0]["name"] == expected[0].name
    wanted = {prediction.name: prediction.probability for prediction in expected}
    for entry in found["classes"]:
        assert entry["probability"] == pytest.approx(wanted[entry["name"]], abs=within)


@pytest.mark.parametrize("uint8_input", [False, True])
def test_it_answers_what_the_model_does(
    start: Callable[..., Any], service: Service, uint8_input: bool
) -> None:
    """Without torch, with Pillow's resize: the same classes, for images of many kinds."""
    model = proxylessnas.create_model(MODEL, pretrained=True).eval()
    with start(uint8_input=True) if uint8_input else contextlib.nullcontext(service) as running:
        for name, (kind, data) in images().items():
            status, found, _ = running.post(data, f"image/{kind}")
            assert status == 200, (name, found)
            assert len(found["classes"]) == 5
            same(found, model.predict(Image.open(io.BytesIO(data)), top=10), 0.02)
            assert (found["width"], found["height"]) == Image.open(io.BytesIO(data)).size


def test_health_and_page(service: Service) -> None:
    status, found, _ = service.ask("GET", "/health")
    assert (status, found["status"], found["net"]) == (200, "ok", MODEL)
    status, page, headers = service.ask("GET", "/")
    assert status == 200
    assert b"What is in the image?" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http://www.w3.org/2000/svg" in page
    assert page.count(b"http") == 1  # nothing is fetched from elsewhere
    status, body, headers = service.ask("HEAD", "/")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(page)))


def bomb() -> bytes:
    """Return an image of 144 million pixels in a small file."""
    return encoded(Image.new("1", (12_000, 12_000)), "PNG")


PNG, JPEG = {"Content-Type": "image/png"}, {"Content-Type": "image/jpeg"}
REFUSED: dict[str, tuple[int, str, Callable[[Service], Any]]] = {
    "cut off": (400, "damaged", lambda s: s.post(DOG.read_bytes()[:-3000])),
    "text": (400, "no image", lambda s: s.post(b"hello")),
    "empty": (400, "no image", lambda s: s.post(b"")),
    "a format that is not accepted": (
        400, "no image", lambda s: s.post(encoded(Image.new("L", (9, 9)), "PPM"), "image/png"),
    ),
    "other path": (404, "Not Found", lambda s: s.ask("POST", "/x", b"", PNG)),
    "get of other path": (404, "Not Found", lambda s: s.ask("GET", "/secret")),
    "large, no length": (413, "larger than 12 MB", lambda s: s.ask(
        "POST", "/classify", iter([bytes(1 << 20)] * 13), PNG,
    )),
    "large": (413, "larger than 12 MB", lambda s: s.post(bytes(13 << 20))),
    "bomb": (413, "more than 50 million pixels", lambda s: s.post(bomb(), "image/png")),
    "PDF": (415, "Content-Type", lambda s: s.post(b"%PDF", "application/pdf")),
    "no type": (415, "Content-Type", lambda s: s.ask("POST", "/classify", DOG.read_bytes())),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(service: Service, name: str) -> None:
    """The sender gets the reason, and the service goes on."""
    expected, text, send = REFUSED[name]
    status, found, _ = send(service)
    assert (status, text in found["error"]) == (expected, True), found
    assert service.post(DOG.read_bytes())[0] == 200


def test_an_upload_without_a_length(service: Service) -> None:
    status, found, _ = service.ask("POST", "/classify", iter([DOG.read_bytes()]), JPEG)
    assert (status, found["classes"][0]["name"]) == (200, "dog")


def test_other_methods_and_broken_requests_are_refused(service: Service) -> None:
    for method in ("DELETE", "PUT", "GET"):
        status, found, _ = service.ask(method, "/classify")
        assert (status, found) == (405, {"error": "Method Not Allowed"})
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as sender:
        sender.sendall(b"rubbish\r\n\r\n")
        assert b" 400 Bad Request" in sender.makefile("rb").read()


@contextlib.contextmanager
def half_sent(service: Service, body: bytes) -> Iterator[Callable[[], tuple[int, Any]]]:
    """Begin an upload that the service then waits for; what is given sends the rest, returns the answer."""
    head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body[:1000])

        def finish() -> tuple[int, Any]:
            connection.sendall(body[1000:])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, json.loads(answer.read())

        yield finish


def test_more_than_can_be_served_are_turned_away(start: Callable[..., Any]) -> None:
    with start("--at-once", "0") as service:
        status, found, headers = service.post(DOG.read_bytes())
        assert status == 503
        assert "too many" in found["error"]
        assert headers["Retry-After"] == "1"
        assert service.ask("GET", "/health")[0] == 200


def test_slow_uploads_hold_nobody_up(start: Callable[..., Any]) -> None:
    body = DOG.read_bytes()
    with start("--at-once", "1") as service, contextlib.ExitStack() as slow:
        finish = [slow.enter_context(half_sent(service, body)) for _ in range(12)]
        assert service.post(body)[0] == 200
        assert finish[0]()[0] == 200


@pytest.mark.slow
def test_a_sender_that_falls_silent_is_given_up(start: Callable[..., Any]) -> None:
    with start() as service, half_sent(service, DOG.read_bytes()) as finish:
        time.sleep(25)
        assert finish()[0] == 408


def test_an_upload_that_breaks_off_frees_its_place(start: Callable[..., Any]) -> None:
    with start("--at-once", "1") as service:
        with half_sent(service, DOG.read_bytes()):
            pass
        assert service.post(DOG.read_bytes())[0] == 200


def large(side: int = 7071) -> bytes:
    """Return a PNG of 50 million pixels of 3 x 16 bits, in a small file."""
    packed, row = zlib.compressobj(1), bytes(1 + 6 * side)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0),
        b"IDAT": b"".join([*(packed.compress(row) for _ in range(side)), packed.flush()]),
        b"IEND": b"",
    }
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks.items():
        body += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return body


def peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_large_images_at_once(start: Callable[..., Any]) -> None:
    """They share a budget of pixels: each is answered or told to come again, and everything else works."""
    body = large()
    with start() as service, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(service.post, body, "image/png") for _ in range(8)]
        while not all(answer.done() for answer in answers):
            assert service.ask("GET", "/health")[0] == 200
            time.sleep(0.05)
        found = [answer.result() for answer in answers]
        assert {status for status, _, _ in found} <= {200, 503}
        assert any(status == 200 for status, _, _ in found)
        assert all(headers["Retry-After"] == "1" for status, _, headers in found if status == 503)
        assert service.post(DOG.read_bytes())[0] == 200
        if sys.platform == "linux":
            assert peak_mb(service.process.pid) < 1500  # all eight in work take 4300


def ended(connection: socket.socket) -> bool:
    """Wait until the other side has closed a connection."""
    connection.settimeout(120)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_that_drip_headers(start: Callable[..., Any]) -> None:
    """They keep nobody else waiting, and they end however long they drip."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.5):
            for sender in senders:
                with contextlib.suppress(OSError):
                    sender.sendall(b"x")

    with start() as service, contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        address = ("127.0.0.1", service.port)
        senders = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(70)]
        for sender in senders:
            sender.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Drip: ")
        pool.submit(drip)
        try:
            for _ in range(5):
                assert service.ask("GET", "/health")[0] == 200
                assert service.post(DOG.read_bytes())[0] == 200
            assert all(ended(sender) for sender in senders)
        finally:
            stop.set()


def test_many_at_once(service: Service) -> None:
    """All get the model's answer to their own photo, or are told to come again."""
    model = proxylessnas.proxyless_cifar10_demo(pretrained=True)
    photos = sorted((PHOTOS / "cifar10").glob("*.jpg"))
    uploads = [(model.predict(path, top=1)[0].name, path.read_bytes()) for path in photos]
    assert len({name for name, _ in uploads}) >= 4
    broken = ("", b"\xff\xd8broken")
    with ThreadPoolExecutor(16) as pool:
        work = [*uploads, broken] * 8
        answers = list(pool.map(lambda upload: service.post(upload[1]), work))
    for (name, _), (status, found, _) in zip(work, answers, strict=True):
        assert status in ((200, 503) if name else (400, 503))
        if status == 200:
            assert found["classes"][0]["name"] == name
    assert any(status == 200 for status, _, _ in answers)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without telling them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_it_has_begun(start: Callable[..., Any], number: signal.Signals) -> None:
    """Uploads whose headers have come and an image in work get their answers; nobody else does."""
    dog, image = DOG.read_bytes(), large()
    with (
        start() as service,
        ThreadPoolExecutor(1) as pool,
        half_sent(service, image) as finish_large,
        half_sent(service, dog) as finish,
    ):
        answer = pool.submit(finish_large)
        service.process.send_signal(number)
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", service.port), timeout=60).close()
                time.sleep(0.01)
        assert finish()[0] == 200
        assert answer.result()[0] == 200
        out, _ = service.process.communicate(timeout=60)
        assert (service.process.returncode, out) == (0, "stopped\n")


def refused_start(file: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "examples" / "serve.py"), str(file), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_files_that_cannot_be_served(tmp_path: Path, without_torch: dict[str, str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for name in ("text.onnx", "missing.onnx"):
        done = refused_start(tmp_path / name, without_torch)
        assert done.returncode == 2
        assert f"{name} cannot be served" in done.stderr


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "onnxruntime"])
def test_without_the_extra(missing: str, tmp_path: Path, without_torch: dict[str, str]) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})\n")
    paths = os.pathsep.join([str(tmp_path), without_torch["PYTHONPATH"]])
    done = refused_start(tmp_path / "model.onnx", {**without_torch, "PYTHONPATH": paths})
    assert done.returncode == 1
    assert done.stderr == f"error: {missing} is missing: pip install 'proxylessnas[serve]'\n"


def test_a_port_that_is_taken(service: Service, without_torch: dict[str, str]) -> None:
    done = refused_start(service.file, without_torch, "--port", str(service.port))
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot serve at 127.0.0.1, port ")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def names(browser: Browser) -> list[str]:
    """Return the classes that the page shows."""
    browser.wait("document.querySelectorAll('ol li').length == 5")
    return browser.run("return [...document.querySelectorAll('li .name')].map((e) => e.textContent)")


def test_page_with_a_chosen_file(service: Service, browser: Browser) -> None:
    """The image, five bars of the right length, and nothing fetched from anywhere else."""
    browser.open(service.url)
    browser.wait("document.getElementById('net').textContent == arguments[0]", MODEL)
    browser.choose_file("#file", DOG)
    assert names(browser)[0] == "dog"
    browser.wait("document.getElementById('picture').naturalWidth == 256")
    found = service.post(DOG.read_bytes())[1]
    browser.wait("document.querySelector('li .track span').getAnimations().length == 0")
    shares = browser.run(
        "return [...document.querySelectorAll('.track span')].map((e) => "
        "e.offsetWidth / e.parentElement.offsetWidth)"
    )
    for share, entry in zip(shares, found["classes"], strict=True):
        assert share == pytest.approx(entry["probability"], abs=0.01)
    assert f"{found['classes'][0]['probability']:.1%}".replace("%", " %") in browser.text("li")
    fetched = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((service.url, "blob:", "data:")) for name in fetched)
    assert browser.complaints() == []


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes, new Uint8Array(arguments[3])], arguments[1], {type: arguments[2]}));
const fire = (kind) => document.querySelector('h1').dispatchEvent(
    new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: data}));
fire('dragenter');
const marked = document.getElementById('drop').classList.contains('over');
const kept = !fire('dragover') && !fire('drop');
return marked && kept && !document.getElementById('drop').classList.contains('over');
"""


def drop(browser: Browser, data: bytes, name: str, kind: str, zeros: int = 0) -> None:
    """Drop a file, with zeros behind its data, beside the frame."""
    assert browser.run(DROP, base64.b64encode(data).decode(), name, kind, zeros)


def test_page_with_dropped_files(service: Service, browser: Browser) -> None:
    browser.open(service.url)
    browser.wait("document.getElementById('net').textContent == arguments[0]", MODEL)
    drop(browser, (PHOTOS / "cifar10" / "horse.jpg").read_bytes(), "horse.jpg", "image/jpeg")
    assert names(browser)[0] == "horse"
    drop(browser, b"hello", "notes.txt", "text/plain")
    alert = "document.querySelector('[role=alert]')?.textContent"
    assert "notes.txt: send an image" in browser.wait(alert)
    browser.wait("document.getElementById('picture').hidden")
    drop(browser, DOG.read_bytes()[:900], "half.jpg", "image/jpeg")
    assert "damaged" in browser.wait(f"{alert}.includes('half') && {alert}")
    drop(browser, b"BM", "huge.bmp", "image/bmp", zeros=13 << 20)
    assert "larger than 12 MB" in browser.wait(f"{alert}.includes('huge') && {alert}")
    drop(browser, DOG.read_bytes(), "<b>dog</b>.jpg", "image/jpeg")
    assert names(browser)[0] == "dog"
    browser.complaints()  # of the refusals


def test_page_fits_screens_and_schemes(service: Service, browser: Browser) -> None:
    """No sideways scrolling on a small phone; dark where that is asked for; usable by keyboard."""
    browser.open(service.url)
    backgrounds = set()
    for scheme in ("light", "dark"):
        browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        backgrounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    browser.emulate("setDeviceMetricsOverride", width=320, height=568, deviceScaleFactor=2, mobile=True)
    browser.choose_file("#file", PHOTOS / "cat.jpg")
    names(browser)
    assert browser.run("return document.documentElement.scrollWidth") <= 320
    assert Image.open(io.BytesIO(browser.screenshot())).size == (640, 1136)
    browser.emulate("clearDeviceMetricsOverride")
    browser.run("document.getElementById('file').focus()")
    assert browser.run("return document.activeElement.labels[0].id") == "drop"
    assert browser.run("return document.activeElement.getAttribute('aria-describedby')") == "hint"

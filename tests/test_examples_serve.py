"""The service of examples/serve.py: answers, refusals, load, the end, and its page in a real browser."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from PIL import Image

import proxylessnas
from proxylessnas.deploy.formats import ExportOptions, format_of
from proxylessnas.deploy.subject import open_subject

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

REPO = Path(__file__).resolve().parent.parent
PHOTOS = REPO / "examples" / "photos"
DOG = PHOTOS / "cifar10" / "dog.jpg"
NET = "proxyless_cifar10_demo"


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
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(data) if is_json and data else data, dict(answer.headers)

    def post(self, body: bytes, kind: str = "image/jpeg") -> tuple[int, Any, dict[str, str]]:
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
            format_of(file).write(open_subject(NET), file, ExportOptions(uint8_input=uint8_input))
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


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pictures() -> dict[str, tuple[str, bytes]]:
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
def test_it_answers_what_the_net_does(start: Callable[..., Any], service: Service, uint8_input: bool) -> None:
    """Without torch, with Pillow's resize: the same classes, for pictures of many kinds."""
    net = proxylessnas.create_model(NET, pretrained=True).eval()
    with start(uint8_input=True) if uint8_input else contextlib.nullcontext(service) as running:
        for name, (kind, data) in pictures().items():
            status, found, _ = running.post(data, f"image/{kind}")
            assert status == 200, (name, found)
            assert len(found["classes"]) == 5
            same(found, net.predict(Image.open(io.BytesIO(data)), top=10), 0.02)
            assert (found["width"], found["height"]) == Image.open(io.BytesIO(data)).size


def test_health_and_page(service: Service) -> None:
    status, found, _ = service.ask("GET", "/health")
    assert (status, found["status"], found["net"]) == (200, "ok", NET)
    status, page, headers = service.ask("GET", "/")
    assert status == 200
    assert b"What is in the picture?" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http://www.w3.org/2000/svg" in page
    assert page.count(b"http") == 1  # nothing is fetched from elsewhere
    status, body, headers = service.ask("HEAD", "/")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(page)))


def bomb() -> bytes:
    """Return a picture of 144 million pixels in a small file."""
    return encoded(Image.new("1", (12_000, 12_000)), "PNG")


PNG = {"Content-Type": "image/png"}
REFUSED: dict[str, tuple[int, str, Callable[[Service], Any]]] = {
    "cut off": (400, "damaged", lambda s: s.post(DOG.read_bytes()[:-3000])),
    "text": (400, "no picture", lambda s: s.post(b"hello")),
    "empty": (400, "no picture", lambda s: s.post(b"")),
    "a format that is not accepted": (
        400, "no picture", lambda s: s.post(encoded(Image.new("L", (9, 9)), "PPM"), "image/png"),
    ),
    "other path": (404, "nothing is at /x", lambda s: s.ask("POST", "/x", b"", PNG)),
    "get of other path": (404, "nothing is at /secret", lambda s: s.ask("GET", "/secret")),
    "no length": (
        411, "Content-Length", lambda s: s.ask("POST", "/classify", iter([b"x"]), PNG),
    ),
    "odd length": (
        411, "Content-Length",
        lambda s: s.ask("POST", "/classify", b"x", {**PNG, "Content-Length": "-1"}),
    ),
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


def test_other_methods_and_broken_requests_are_refused(service: Service) -> None:
    for method in ("DELETE", "PUT"):
        status, found, _ = service.ask(method, "/classify")
        assert (status, found) == (501, {"error": f"Unsupported method ({method!r})"})
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sender:
        sender.sendall(b"rubbish\r\n\r\n")
        assert b'{"error": "Bad request syntax' in sender.makefile("rb").read()


@contextlib.contextmanager
def half_sent(service: Service, body: bytes) -> Iterator[Callable[[], bytes]]:
    """Begin an upload; what is given sends the rest and returns the answer."""
    head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(head.encode() + body[:1000])

        def finish() -> bytes:
            connection.sendall(body[1000:])
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

        yield finish


def until(service: Service, wanted: int) -> tuple[int, Any, dict[str, str]]:
    """Post until the answer has a status."""
    for _ in range(200):
        answer = service.post(DOG.read_bytes())
        if answer[0] == wanted:
            return answer
    raise AssertionError(f"never {wanted}, last {answer}")


def test_more_than_can_be_served_are_turned_away(start: Callable[..., Any]) -> None:
    with start("--at-once", "1") as service, half_sent(service, DOG.read_bytes()) as finish:
        _, found, headers = until(service, 503)
        assert "too many" in found["error"]
        assert headers["Retry-After"] == "1"
        assert service.ask("GET", "/health")[0] == 200
        assert b" 200 OK" in finish()
        assert service.post(DOG.read_bytes())[0] == 200


@pytest.mark.slow
def test_a_sender_that_falls_silent_is_given_up(start: Callable[..., Any]) -> None:
    """It holds its place for seconds, not for ever."""
    with start("--at-once", "1") as service, half_sent(service, DOG.read_bytes()):
        until(service, 503)
        end = time.monotonic() + 30
        while service.post(DOG.read_bytes())[0] == 503:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_many_at_once(service: Service) -> None:
    """All get the net's answer to their own photo, or are told to come again."""
    net = proxylessnas.proxyless_cifar10_demo(pretrained=True)
    photos = sorted((PHOTOS / "cifar10").glob("*.jpg"))
    uploads = [(net.predict(path, top=1)[0].name, path.read_bytes()) for path in photos]
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
    with start("--at-once", "1") as service:
        with half_sent(service, DOG.read_bytes()) as finish:
            until(service, 503)  # the upload has arrived
            service.process.send_signal(number)
            answer: list[bytes] = []
            thread = threading.Thread(target=lambda: answer.append(finish()))
            thread.start()
            thread.join()
        assert b" 200 OK" in answer[0]
        out, _ = service.process.communicate(timeout=60)
        assert service.process.returncode == 0
        assert out == "stopped\n"
        with pytest.raises(ConnectionRefusedError):
            service.post(b"")


def refused_start(file: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "examples" / "serve.py"), str(file), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_files_that_cannot_be_served(tmp_path: Path, without_torch: dict[str, str]) -> None:
    (tmp_path / "text.onnx").write_text("no net")
    for name in ("text.onnx", "missing.onnx"):
        done = refused_start(tmp_path / name, without_torch)
        assert done.returncode == 2
        assert f"{name} cannot be served" in done.stderr


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
    """The picture, five bars of the right length, and nothing fetched from anywhere else."""
    browser.open(service.url)
    browser.wait("document.getElementById('net').textContent == arguments[0]", NET)
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
    browser.wait("document.getElementById('net').textContent == arguments[0]", NET)
    drop(browser, (PHOTOS / "cifar10" / "horse.jpg").read_bytes(), "horse.jpg", "image/jpeg")
    assert names(browser)[0] == "horse"
    drop(browser, b"hello", "notes.txt", "text/plain")
    alert = "document.querySelector('[role=alert]')?.textContent"
    assert "notes.txt: send a picture" in browser.wait(alert)
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

"""A real browser without a window, driven through chromedriver's HTTP interface."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    "--window-size=1100,800"
)


class Browser:
    """A session of chromedriver's."""

    def __init__(self, driver: str, folder: Path) -> None:
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        options = {"args": [*_FLAGS.split(), f"--user-data-dir={folder}"], "binary": browser}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._url = driver
        made = self._ask("POST", "/session", capabilities={"alwaysMatch": capabilities})
        self._url = f"{driver}/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)["value"]["message"]) from None

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; `return` gives a value back."""
        return self._ask("POST", "/execute/sync", script=script, args=list(arguments))

    def wait(self, condition: str, *arguments: Any) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            value = self.run(f"return {condition}", *arguments)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came true: {condition}; page: {self.text('body')}")

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def choose_file(self, selector: str, file: Path) -> None:
        """Choose a file as a user does in the file dialog."""
        found = self._ask("POST", "/element", using="css selector", value=selector)
        self._ask("POST", f"/element/{next(iter(found.values()))}/value", text=str(file))

    def press(self, key: str) -> None:
        """Press a key on what has the focus: a character, or one of WebDriver's codes for the others."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def emulate(self, command: str, **parameters: Any) -> None:
        self._ask("POST", "/goog/cdp/execute", cmd=f"Emulation.{command}", params=parameters)

    def screenshot(self) -> bytes:
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """Return what the page wrote to the console since the last call, as after an error."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", type="browser")]

    def close(self) -> None:
        self._ask("DELETE", "")


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if not driver or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no browser: chromium and chromedriver (Debian: chromium, chromium-driver) are needed")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ports = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
            browser = Browser(f"http://127.0.0.1:{next(filter(None, ports))[1]}", folder)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()

"""What every test runs under: no network, no cache or settings of the user's, a fixed seed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
OFFLINE = Path(__file__).resolve().parent / "offline"

sys.path.insert(0, str(OFFLINE))
sys.modules.pop("sitecustomize", None)  # a system's own one may be loaded already
import sitecustomize as network_guard  # noqa: E402

sys.path.remove(str(OFFLINE))

pytest_plugins = ["cache_fixtures"]

# Read before the variables are hidden from the tests.
_TEST_DATA = Path(os.environ.get("PROXYLESSNAS_TEST_DATA") or REPO.parent / "shared" / "data")

# Proxies and certificate settings would send loopback requests elsewhere.
_HIDDEN = ("PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

with contextlib.suppress(ImportError):
    from hypothesis import settings

    # No deadline: the machines that run this are shared, and the first example pays for lazy imports.
    settings.register_profile("proxylessnas", deadline=None, print_blob=True)
    settings.load_profile("proxylessnas")

# Started in the background, a shell's programs ignore Ctrl-C, and so would those that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    # One thread: where other processes compete for the cores, OpenMP's threads wait for each other in busy
    # loops, and a forward pass can take a hundred times longer.
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        from proxylessnas.utils.malloc import keep_freed_pages

        keep_freed_pages()  # faster: by default glibc gives activations back to the system after each layer


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Give each test an empty home and cache, no settings from outside, the same seed, and no network."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("PROXYLESSNAS_") or name.upper().endswith(_HIDDEN):
            monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)  # a test's torch.hub.set_dir() must not outlive it
    online = request.node.get_closest_marker("network") is not None
    if not online:
        monkeypatch.setenv("PYTHONPATH", str(OFFLINE))
    monkeypatch.setattr(network_guard, "allowed", online)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the same for the processes that a test starts
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real photos and weights, which is not part of the repository."""
    if not _TEST_DATA.is_dir():
        pytest.skip(
            f"no real photos and weights at {_TEST_DATA} (PROXYLESSNAS_TEST_DATA names another folder)"
        )
    return _TEST_DATA


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository as a fresh clone has it: nothing that git ignores."""
    from packaging_tools import copy_tree

    return copy_tree(REPO, tmp_path_factory.mktemp("clone") / "proxylessnas-main")

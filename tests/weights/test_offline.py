"""The tests themselves are held offline and away from the user's files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_other_hosts_are_out_of_reach() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match=r"192\.0\.2\.1.*run offline"):
        client.connect(("192.0.2.1", 80))


def test_names_are_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"example\.invalid.*run offline"):
        socket.create_connection(("example.invalid", 443), timeout=1)


def test_datagrams_are_held_back_too() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(RuntimeError, match="run offline"):
        client.sendto(b"x", ("192.0.2.1", 53))


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()


def test_processes_that_tests_start_are_offline() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "NetworkBlockedError" in done.stderr


def test_home_cache_and_settings_are_the_tests_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    assert Path.home().is_relative_to(base)
    assert Path(torch.hub.get_dir()).is_relative_to(base)
    assert [name for name in os.environ if name.startswith("PROXYLESSNAS_")] == []

"""The command line, run in the process of the tests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from proxylessnas.cli import main


@dataclasses.dataclass
class Ran:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


def runner(capsys: pytest.CaptureFixture[str], *first: str) -> Run:
    """Return a function that runs the command, with these words before those it is given."""

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([*first, *map(str, words)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run

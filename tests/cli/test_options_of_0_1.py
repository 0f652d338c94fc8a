"""The options of version 0.1: each command still has every one of them, with the same default."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import Run, runner

from proxylessnas.cli import commands
from proxylessnas.cli._main import build_parser


def options_of(parser: argparse.ArgumentParser, command: str = "") -> Iterator[str]:
    """Yield a line for each option of a parser and of its commands, as the fixture has it."""
    parser.format_help()  # which declares the arguments
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, own in action.choices.items():
                yield from options_of(own, f"{command} {name}".strip())
        elif action.dest not in ("help", "version"):
            value = "(flag)" if action.nargs == 0 else f"= {parser.get_default(action.dest)!r}"
            yield from (f"{command} {text} {value}" for text in action.option_strings)


def test_every_option_is_there_with_its_default(repo: Path) -> None:
    old = (repo / "tests/fixtures/v0_1/options.txt").read_text().splitlines()
    here = set(options_of(build_parser(commands())))
    assert [line for line in old if line not in here] == []


WRONG = """
latency build --space tiny -o t.json --threads 0
latency build --space tiny -o t.json --minutes nan
latency build --space tiny -o t.json --batch 1.5
latency build --space tiny -o t.json --device tpu
latency measure proxyless_cpu --dtype float8
latency measure proxyless_cpu --seconds 0
latency import a.csv -o t.json --unit h
latency kit --space tiny -o kit --nets -1
bench --threads 1,0
bench --runtime torch,nothing
bench --rounds 0
export proxyless_cpu a.onnx --batch-size 0
export proxyless_cpu a.onnx --tolerance 2
export proxyless_cpu a.onnx --target-isa sse2
export proxyless_cpu a.onnx --int8
export proxyless_cpu a.onnx --max-drop 0.1
eval proxyless_cpu digits --batch-size 0
eval proxyless_cpu digits --workers -1
predict proxyless_cpu a.jpg --top 0
train proxyless_cpu digits --threads 0
train proxyless_cpu digits --save-every -1
train proxyless_cpu digits --max-unreadable 2
search run --space tiny --data digits --threads 1025
search derive runs/a --out b --threads 0
plot proxyless_cpu --frames 1
plot proxyless_cpu --seconds 0
"""


@pytest.mark.parametrize("line", WRONG.strip().splitlines())
def test_wrong_values_end_with_2(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run: Run = runner(capsys)
    monkeypatch.chdir(tmp_path)
    ran = run(*line.split())
    wrong = next(word for word in reversed(line.split()) if word.startswith("--"))
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert wrong in ran.err

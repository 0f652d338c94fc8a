"""A message names the option; what it is in Python stands in parentheses, and not on the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from proxylessnas.errors import for_command_line

# Reached from Python alone: a module or a model in memory, or an argument that no option stands for.
PYTHON_ALONE = {"zoo.py", "loading.py", "classifier.py", "predict.py", "optimizing.py", "arch_official.py"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.pt: exists already: --force (force=True in Python) replaces it",
         "a.pt: exists already: --force replaces it"),
        ("name one: NAME --weights FILE (create_model(NAME, weights=FILE) in Python)",
         "name one: NAME --weights FILE"),
        ("no option --a-b (a_b in Python) and no option --c (c in Python)",
         "no option --a-b and no option --c"),
        ("a (folder) in Python", "a (folder) in Python"),
        ("(photos in Pythonland)", "(photos in Pythonland)"),
    ],
)  # fmt: skip
def test_what_the_command_line_shows(message: str, shown: str) -> None:
    assert for_command_line(message) == shown


def test_no_error_asks_for_python_where_an_option_is_meant(repo: Path) -> None:
    """In the source: ``name=VALUE`` is not said without the option that it is, or "in Python"."""
    found = []
    for file in sorted((repo / "proxylessnas").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None or file.name in PYTHON_ALONE:
                continue
            texts = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant)]
            text = "".join(t for t in texts if isinstance(t, str))
            spelt = re.search(r"\b[a-z_]+=(?:True|False|None|[A-Z]{3,})|\((?:force|limit|unit)\)", text)
            if spelt and not re.search(r"in Python|--[a-z]", text):
                found.append(f"{file.relative_to(repo)}:{node.lineno}: {text}")
    assert not found

"""What MkDocs does besides: pages that are generated, formulas as MathML, links to files of the repository.

In a page, `<!-- commands -->` becomes the help of every command, and `<!-- public names: PACKAGE -->` the
documentation of what a package lists in `__all__`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(\.\./([^)#\s]+)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?! )([^$\n]+?)(?<! )\$", re.DOTALL)
_PLACE = "formula-%d-of-this-page"  # Markdown leaves it alone


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that pages link to, so that the site is complete without it."""
    pages = [page.content_string for page in list(files.documentation_pages())]
    for path in sorted({path for text in pages for path in _LINK.findall(text)}):
        name = f"repository/{path}" + (".txt" if path.endswith((".py", ".md", ".toml", "LICENSE")) else "")
        files.append(File.generated(config, name, content=(REPO / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and put formulas aside."""
    markdown = _LINK.sub(_into_the_site, markdown)
    markdown = markdown.replace("<!-- commands -->", "\n".join(_help()))
    markdown = re.sub(r"<!-- public names: (\S+) -->", _public_names, markdown)
    page.formulas = []
    parts = _CODE.split(markdown)
    parts[::2] = [_FORMULA.sub(lambda found: _put_aside(found, page.formulas), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Put formulas in their places; show roles of Sphinx in docstrings as plain code."""
    for i, formula in enumerate(page.formulas):
        html = html.replace(_PLACE % i, formula, 1)
    return re.sub(r":\w+:<code>~?\.*([^<]+)</code>", r"<code>\1</code>", html)


def _into_the_site(link: re.Match[str]) -> str:
    path = link[1]
    return f"](repository/{path}" + (".txt" if path.endswith((".py", ".md", ".toml", "LICENSE")) else "")


def _put_aside(found: re.Match[str], formulas: list[str]) -> str:
    formulas.append(convert(found[1] or found[2], display="block" if found[1] else "inline"))
    return _PLACE % (len(formulas) - 1)


def _public_names(found: re.Match[str]) -> str:
    names = [name for name in importlib.import_module(found[1]).__all__ if not name.startswith("_")]
    return "\n".join(f"::: {found[1]}.{name}\n" for name in names)


def _help() -> Iterator[str]:
    from proxylessnas.cli._main import build_parser, commands

    os.environ["COLUMNS"] = "88"  # argparse breaks its lines by this

    def of(parser: argparse.ArgumentParser, depth: int) -> Iterator[str]:
        yield f"{'#' * depth} {parser.prog}\n"
        yield f"```text\n{parser.format_help().rstrip()}\n```\n"
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for own in action.choices.values():
                    yield from of(own, min(depth + 1, 3))

    return of(build_parser(commands()), 2)

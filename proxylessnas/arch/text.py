"""Text form of an architecture: the Python expression that would build it, read by a parser of its own.

Never evaluated: only ``Arch(...)``, ``TreeArch(...)`` and ``Stage(...)`` with literal arguments are
understood, the nesting is fixed and the size bounded, so a file from anywhere can be parsed. ``ast.parse``
would name other places in errors (adjacent strings are one to it) and others with every version of Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ArchError, shown
from . import ops
from .blocks import Stage

if TYPE_CHECKING:
    from .arch import Arch
    from .tree import TreeArch

MAX_TEXT = 1_000_000
_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n\f]+|\#[^\n]*)
      | (?P<string>'(?:[^'\\\n]|\\['"\\])*'|"(?:[^"\\\n]|\\['"\\])*")
      | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[()=,\[\]])""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.offset = 0
        self.ahead: _Token | None = None  # read only when asked for: what follows an error is not looked at

    def error(self, message: str, offset: int) -> ArchError:
        before = self.text[:offset]
        return ArchError(message, line=before.count("\n") + 1, column=offset - before.rfind("\n"))

    @property
    def token(self) -> _Token:
        """The next token."""
        while self.ahead is None:
            offset = self.offset
            match = _TOKEN.match(self.text, offset)
            if match is None and offset < len(self.text):
                raise self.error(f"unexpected {self.text[offset : offset + 12]!r}", offset)
            if match is None:
                self.ahead = _Token("end", "", offset)
            else:
                self.offset = match.end()
                if match.lastgroup != "skip":
                    self.ahead = _Token(str(match.lastgroup), match[0], offset)
        return self.ahead

    def take(self, kind: str, text: str | None = None) -> _Token:
        token = self.token
        if token.kind != kind or (text is not None and token.text != text):
            wanted = repr(text) if text else f"a {kind}"
            found = shown(token.text) if token.text else "the end"
            raise self.error(f"expected {wanted}, found {found}", token.offset)
        self.ahead = None
        return token

    def accept(self, kind: str, text: str) -> bool:
        found = self.token[:2] == (kind, text)
        if found:
            self.ahead = None
        return found

    def string(self, check: Callable[[str], object] | None = None) -> str:
        """Read adjacent string literals; ``check`` is called on each word, to place its error."""
        if self.token.kind != "string":
            raise self.error("expected a string", self.token.offset)
        parts = []
        while self.token.kind == "string":
            token = self.take("string")
            raw = token.text[1:-1]
            for word in re.finditer(r"\S+", raw) if check else ():
                try:
                    check(word[0])  # type: ignore[misc]
                except ArchError as e:
                    hint = ops.missing(word[0].removesuffix("!"), ops.noted(self.text))
                    raise self.error(hint or str(e), token.offset + 1 + word.start()) from e
            parts.append(re.sub(r"\\(.)", r"\1", raw))
        return "".join(parts)

    def value(self, field: Field[Any]) -> Any:
        kind, check = str(field.type), field.metadata.get("check_word")
        if kind.startswith("tuple"):
            return self.sequence((lambda: self.call(Stage)) if "Stage" in kind else self.string)
        if check or self.token.kind == "string":
            return self.string(check)
        if self.accept("word", "None"):
            return None
        _, text, offset = self.take("number")
        if len(text) > 32:
            raise self.error("the number is too long", offset)
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)

    def sequence(self, read: Callable[[], object]) -> tuple[Any, ...]:
        close = "]" if self.token.text == "[" else ")"
        self.take("mark", "[" if close == "]" else "(")
        items: list[object] = []
        while not self.accept("mark", close):
            items.append(read())
            if not self.accept("mark", ","):
                self.take("mark", close)
                break
        return tuple(items)

    def call(self, *kinds: type[Any]) -> Any:
        head = self.take("word")
        kind = {kind.__name__: kind for kind in kinds}.get(head.text)
        if kind is None:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise self.error(f"expected {wanted}, found {shown(head.text)}", head.offset)
        known = {f.name: f for f in fields(kind)}
        places = list(known)  # of positional arguments; none after a keyword
        given: dict[str, Any] = {}

        def argument() -> None:
            offset = self.token.offset
            if self.token.kind == "word" and self.token.text != "None":
                name = self.take("word").text
                if not self.accept("mark", "="):
                    raise self.error(f"expected a value or NAME=, found {shown(name)}", offset)
                places.clear()
                if name not in known:
                    has = f"{head.text} has no field {shown(name)}; it has {', '.join(known)}"
                    raise self.error(has, offset)
            elif places:
                name = places.pop(0)
            else:
                raise self.error("unexpected positional argument", offset)
            if name in given:
                raise self.error(f"{name} is given twice", offset)
            given[name] = self.value(known[name])

        self.sequence(argument)
        missing = [name for name, f in known.items() if f.default is MISSING and name not in given]
        if missing:
            raise self.error(f"{head.text} lacks {', '.join(missing)}", head.offset)
        try:
            return kind(**given)
        except ArchError as e:
            raise self.error(str(e), head.offset) from e


def parse_arch(text: str, *kinds: type[Arch] | type[TreeArch]) -> Arch | TreeArch:
    """Read an architecture of one of some kinds (dataclasses) from its text form.

    Raises:
        ArchError: with the line and column of the bad token.
    """
    if not isinstance(text, str):
        raise ArchError(f"an architecture's text is a str, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ArchError(f"the text has {len(text)} characters; at most {MAX_TEXT} are read")
    parser = _Parser(text)
    arch: Arch | TreeArch = parser.call(*kinds)
    end = parser.token
    if end.kind != "end":
        raise parser.error(f"unexpected {shown(end.text)} after the architecture", end.offset)
    return arch


def format_arch(arch: Arch) -> str:
    """Return the text form of an MBConv model; every line but a long name's fits 110 columns.

    It ends in a comment for each registered operation, which names the module that registered it.
    """
    head = f"{arch.name!r}, stem={arch.stem}, first={arch.first}, last={arch.last}"
    for extra in _extras(arch):
        fits = len(head.rpartition("\n")[2]) + len(extra) < 80
        head += f", {extra}" if fits else f",\n    {extra}"
    stages = "".join(f'    Stage({s.width}, {s.stride}, "{s.ops}"),\n' for s in arch.stages)
    notes = ops.notes(token for s in arch.stages for token in s.tokens)
    return "\n".join([f"Arch({head}, stages=(\n{stages}))", *notes])


def format_tree(arch: TreeArch) -> str:
    """Return the text form of a tree model; every line but a long name's fits 110 columns."""
    words = arch.words
    lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    cells = "\n".join(f'    "{line} "' for line in lines[:-1]) + f'\n    "{lines[-1]}"'
    return f"TreeArch({', '.join([repr(arch.name), *_extras(arch)])}, cells=\n{cells}\n)"


def _extras(arch: Arch | TreeArch) -> list[str]:
    """Return the fields that differ from their default, as arguments."""
    values = [(f, getattr(arch, f.name)) for f in fields(arch)]
    return [f"{f.name}={value!r}" for f, value in values if f.default is not MISSING and value != f.default]

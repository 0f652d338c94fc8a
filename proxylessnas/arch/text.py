"""Text form of an architecture: the Python expression that would build it, read by a parser of its own.

Never evaluated: only ``Arch(...)``, ``TreeArch(...)`` and ``Stage(...)`` with literal arguments are
understood, the nesting is fixed and the size bounded, so a file from anywhere can be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import ArchError, shown
from . import ops as registration
from .arch import Arch, Stage, optional_fields, parse_token
from .tree import TreeArch, check_word

MAX_TEXT = 1_000_000
_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n\f]+|\#[^\n]*)
      | (?P<string>'(?:[^'\\\n]|\\['"\\])*'|"(?:[^"\\\n]|\\['"\\])*")
      | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[()=,\[\]])""",
    re.VERBOSE,
)
_STAGE_FIELDS = ("width", "stride", "ops")
_FIELDS: dict[str, tuple[str, ...]] = {
    "Arch": ("name", "stem", "first", "last", "stages", "num_classes", "in_channels", "stem_stride", "bn_eps",
             "bn_momentum", "dropout", "resolution", "official_keys"),
    "TreeArch": ("name", "cells", "start", "alpha", "num_stages", "num_classes", "in_channels", "resolution"),
    "Stage": _STAGE_FIELDS,
}  # fmt: skip


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


def _position(text: str, offset: int) -> dict[str, int]:
    before = text[:offset]
    return {"line": before.count("\n") + 1, "column": offset - (before.rfind("\n") + 1) + 1}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.offset = 0
        self.ahead: list[_Token] = []  # read, but not taken: what follows an error is never looked at

    def error(self, message: str, offset: int) -> ArchError:
        return ArchError(message, **_position(self.text, offset))

    def _read(self) -> _Token:
        while self.offset < len(self.text):
            offset = self.offset
            match = _TOKEN.match(self.text, offset)
            if match is None:
                raise self.error(f"unexpected {self.text[offset : offset + 12]!r}", offset)
            self.offset = match.end()
            if match.lastgroup != "skip":
                return _Token(str(match.lastgroup), match[0], offset)
        return _Token("end", "", len(self.text))

    def peek(self, further: int = 0) -> _Token:
        while len(self.ahead) <= further:
            self.ahead.append(self._read())
        return self.ahead[further]

    def skip(self) -> None:
        self.peek()
        del self.ahead[0]

    def take(self, kind: str, text: str | None = None) -> _Token:
        token = self.peek()
        if token.kind != kind or (text is not None and token.text != text):
            wanted = repr(text) if text else f"a {kind}"
            raise self.error(
                f"expected {wanted}, found {shown(token.text) if token.text else 'the end'}", token.offset
            )
        self.skip()
        return token

    def accept(self, mark: str) -> bool:
        if self.peek().kind == "mark" and self.peek().text == mark:
            self.skip()
            return True
        return False

    def string(self, check: Callable[[str], object] | None = None) -> str:
        """Read adjacent string literals; ``check`` is called on each word, to place its error."""
        parts = []
        self_offset = self.peek().offset
        while self.peek().kind == "string":
            token = self.take("string")
            raw = token.text[1:-1]
            for word in re.finditer(r"\S+", raw) if check else ():
                try:
                    check(word[0])  # type: ignore[misc]
                except ArchError as e:
                    name = word[0].removesuffix("!")
                    hint = registration.missing(name, registration.noted(self.text))
                    raise self.error(hint or str(e), token.offset + 1 + word.start()) from e
            parts.append(re.sub(r"\\(.)", r"\1", raw))
        if not parts:
            raise self.error("expected a string", self_offset)
        return "".join(parts)

    def value(self, field: str) -> Any:
        token = self.peek()
        if field == "ops":
            return self.string(parse_token)
        if field == "cells":
            return self.string(check_word)
        if field in ("stages", "official_keys"):
            read = (lambda: self.call(("Stage",))) if field == "stages" else self.string
            return tuple(self.sequence(read))
        if token.kind == "string":
            return self.string()
        if token.kind == "word" and token.text == "None":
            self.skip()
            return None
        text = self.take("number").text
        if len(text) > 32:
            raise self.error("the number is too long", token.offset)
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)

    def sequence(self, read: Callable[[], Any]) -> list[Any]:
        close = "]" if self.peek().text == "[" else ")"
        self.take("mark", "[" if close == "]" else "(")
        items: list[Any] = []
        while not self.accept(close):
            items.append(read())
            if not self.accept(","):
                self.take("mark", close)
                break
        return items

    def call(self, allowed: tuple[str, ...]) -> Any:
        head = self.take("word")
        if head.text not in allowed:
            raise self.error(f"expected {' or '.join(allowed)}, found {shown(head.text)}", head.offset)
        names = _FIELDS[head.text]
        given: dict[str, Any] = {}
        keyword_seen = False

        def argument() -> None:
            nonlocal keyword_seen
            token = self.peek()
            is_keyword = token.kind == "word" and self.peek(1).text == "="
            if is_keyword:
                keyword_seen = True
                field = token.text
                self.skip()
                self.skip()
                if field not in names:
                    raise self.error(
                        f"{head.text} has no field {shown(field)}; it has {', '.join(names)}", token.offset
                    )
            elif keyword_seen or len(given) >= len(names):
                raise self.error("unexpected positional argument", token.offset)
            else:
                field = names[len(given)]
            if field in given:
                raise self.error(f"{shown(field)[1:-1]} is given twice", token.offset)
            given[field] = self.value(field)

        self.sequence(argument)
        build: Callable[..., Any] = {"Arch": Arch, "TreeArch": TreeArch, "Stage": Stage}[head.text]
        required = {"Arch": 5, "TreeArch": 2, "Stage": 3}[head.text]
        missing = [name for name in names[:required] if name not in given]
        if missing:
            raise self.error(f"{head.text} lacks {', '.join(missing)}", head.offset)
        try:
            return build(**given)
        except ArchError as e:
            raise self.error(str(e), head.offset) from e


def parse_arch(text: str) -> Arch | TreeArch:
    """Read an architecture from its text form.

    Raises:
        ArchError: with the line and column of the bad token.
    """
    if not isinstance(text, str):
        raise ArchError(f"an architecture's text is a str, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ArchError(f"the text has {len(text)} characters; at most {MAX_TEXT} are read")
    parser = _Parser(text)
    arch: Arch | TreeArch = parser.call(("Arch", "TreeArch"))
    end = parser.peek()
    if end.kind != "end":
        raise parser.error(f"unexpected {shown(end.text)} after the architecture", end.offset)
    return arch


def format_arch(arch: Arch | TreeArch, *, notes: bool = True) -> str:
    """Return the text form of an architecture; every line but a long name's fits 110 columns.

    Args:
        arch: the architecture.
        notes: end with a comment for each registered operation, which names the module that registered it.
    """
    extras = [
        f"{name}={value!r}"
        for name, value in optional_fields(arch)
        if name not in ("cells", "stages", "stem", "first", "last")
    ]
    if isinstance(arch, TreeArch):
        words = arch.words
        lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
        cells = "\n".join(f'    "{line} "' for line in lines[:-1]) + f'\n    "{lines[-1]}"'
        return f"TreeArch({', '.join([repr(arch.name), *extras])}, cells=\n{cells}\n)"
    head = ", ".join([repr(arch.name), f"stem={arch.stem}", f"first={arch.first}", f"last={arch.last}"])
    for extra in extras:
        fits = len(head.rpartition("\n")[2]) + len(extra) < 80
        head += f", {extra}" if fits else f",\n    {extra}"
    stages = "".join(f'    Stage({s.width}, {s.stride}, "{s.ops}"),\n' for s in arch.stages)
    said = registration.notes(token for s in arch.stages for token in s.tokens) if notes else []
    return "\n".join([f"Arch({head}, stages=(\n{stages}))", *said])

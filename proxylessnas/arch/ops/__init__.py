"""Operations of blocks: reads their tokens, registers one's own, and remembers which module registered them.

A token is spelled as one of :data:`SPECS` says (``k5e3``: a mobile inverted bottleneck with a 5x5 depthwise
convolution and expansion ratio 3), ``-`` (a skipped block) or the name of a registered operation; a trailing
``!`` leaves out the shortcut.

Texts of architectures and search spaces end in a comment line an operation, which every reader of them skips:

    # operation my_conv: registered by my_ops

A module that is named in a file is never imported because of that; a person reads its name in an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ...errors import ArchError, shown
from .fused import FusedMBConv
from .mbconv import MBConv
from .spec import Layers, Op, OpSpec
from .uib import FFN, ConvNextLike, ExtraDW

#: The operations of the package. A new one is a file beside these, imported here.
SPECS: tuple[type[OpSpec], ...] = (MBConv, FusedMBConv, ExtraDW, ConvNextLike, FFN)

ZERO = "-"
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NOTE = re.compile(r"^# operation ([A-Za-z_]\w{0,63}): registered by (\w[\w.-]{0,199})$", re.MULTILINE)
_MAIN = "__main__"
_modules: dict[str, str] = {}

#: Builds a registered operation: ``build(in_channels, out_channels, stride) -> nn.Module``.
OpBuilder = Callable[[int, int, int], Any]
_custom_ops: dict[str, OpBuilder] = {}


@dataclass(frozen=True)
class Zero(Op):
    """A block that is skipped."""

    kind = "zero"

    @property
    def name(self) -> str:
        """Its token."""
        return ZERO

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return no layer."""
        return ()


@dataclass(frozen=True)
class Registered(Op):
    """An operation that a user registered."""

    kind = "custom"
    token: str
    build: OpBuilder

    @property
    def name(self) -> str:
        """Its token."""
        return self.token


def register_op(token: str, build: OpBuilder) -> None:
    """Make ``token`` usable as a block in every architecture.

    Args:
        token: an identifier that is not spelled like an operation of the package (``k3e6``).
        build: called with ``(in_channels, out_channels, stride)``; returns an ``nn.Module`` that maps [N,
            in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        ArchError: the token is not an identifier, or it is taken by another builder.
    """
    if not isinstance(token, str) or not IDENTIFIER.fullmatch(token) or is_spelled(token):
        taken = " and ".join(spec.grammar() for spec in SPECS)
        raise ArchError(f"cannot register {token!r}: its name must be an identifier other than {taken}")
    if token in ("ZeroLayer", "IdentityLayer", *(spec.official for spec in SPECS)):
        raise ArchError(f"cannot register {token!r}: the original JSON format uses that name")
    if not callable(build):
        raise ArchError(f"cannot register {token!r}: its builder {shown(build)} cannot be called")
    if _custom_ops.get(token, build) is not build:
        raise ArchError(f"operation {token!r} is registered already, with another builder")
    _custom_ops[token] = build
    remember(token, sys._getframe(1))


def registered() -> list[str]:
    """Return the operations that were registered."""
    return sorted(_custom_ops)


def is_spelled(name: str) -> bool:
    """Tell whether a name is spelled like an operation of the package, possible or not."""
    return any(spec.pattern().fullmatch(name) for spec in SPECS)


def parse_token(token: str) -> tuple[Op, bool]:
    """Return the operation of a block's token, and whether its block may have a shortcut.

    Raises:
        ArchError: the token names no operation.
    """
    name = token.removesuffix("!")
    shortcut = name == token
    if name == ZERO:
        return Zero(), shortcut
    for spec in SPECS:
        try:
            found = spec.parse(name)
        except ValueError as e:
            raise ArchError(f"{shown(token)}: {e}") from None
        if found is not None:
            return found, shortcut
    if name in _custom_ops:
        return Registered(name, _custom_ops[name]), shortcut
    own = "; one of your own is registered first: --import MODULE" if IDENTIFIER.fullmatch(name) else ""
    raise ArchError(f"unknown operation {shown(token)}; known are {known_tokens()}{own}")


def known_tokens() -> str:
    """Return what tokens there are, for messages."""
    spelled = [f"{spec.grammar()} such as {spec.example}" for spec in SPECS]
    return ", ".join([*spelled, "- for a skipped block", *registered()])


def op_name(token: str) -> str:
    """Return the one spelling of a block's operation, without the ``!`` that leaves out its shortcut.

    >>> op_name("k5e6.0!")
    'k5e6'

    Raises:
        ArchError: the token names no operation.
    """
    return parse_token(token)[0].name


def remember(token: str, frame: FrameType | None) -> None:
    """Note which module registers an operation.

    Args:
        token: of the operation.
        frame: of the code that registers it. The module is the one whose import runs that code, for that is
            what has to be imported; else the one that holds it; of a program, the name of its file.
    """
    here = frame
    while here and not (here.f_code.co_name == "<module>" and _is_imported_now(here)):
        here = here.f_back
    found = here or frame
    name = str(found.f_globals.get("__name__", "")) if found else ""
    if name == _MAIN:
        main = sys.modules[_MAIN]
        spec = getattr(main, "__spec__", None)  # of `python -m name`
        name = spec.name if spec else Path(getattr(main, "__file__", None) or "").name
    _modules[token] = name


def _is_imported_now(frame: FrameType) -> bool:
    spec = getattr(sys.modules.get(str(frame.f_globals.get("__name__"))), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def modules_of(tokens: Iterable[str]) -> dict[str, str]:
    """Return the modules that registered operations, by token, where they are known."""
    names = sorted({token.removesuffix("!") for token in tokens})
    return {name: _modules[name] for name in names if _modules.get(name)}


def notes(tokens: Iterable[str]) -> list[str]:
    """Return the comment lines for the end of a text in which these operations are."""
    lines = [f"# operation {token}: registered by {module}" for token, module in modules_of(tokens).items()]
    return [line for line in lines if _NOTE.fullmatch(line)]


def noted(text: str) -> dict[str, str]:
    """Return the modules that the comments of a text name, by operation."""
    return dict(_NOTE.findall(text))


def missing(token: str, modules: Mapping[str, object], what: str = "model") -> str:
    """Return what to do about an operation that is not registered, if a file names its module; else ""."""
    module = modules.get(token)
    if not isinstance(module, str) or not module:
        return ""
    if module.endswith(".py"):
        remedy = "move its register_op into a module of its own and add --import MODULE"
        return f"this {what} uses operation {token!r}, registered by the program {shown(module)}: {remedy}"
    remedy = f"add --import {module[:200]} (in Python: import it first)"
    return f"this {what} uses operation {token!r}, registered by module {shown(module)}: {remedy}"

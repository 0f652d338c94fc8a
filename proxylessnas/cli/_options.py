"""Options of commands, made from the fields of settings, and settings from options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from ..utils.checks import Allowed, Option, Range
from ..utils.config import Config, options
from ._command import UsageError

C = TypeVar("C", bound=Config)


def add(parser: Any, names: str, help: str, **more: Any) -> None:
    """Declare an option of no settings: its names, and what stands for its value unless it is a flag."""
    *first, last = names.split()
    kind = {"action": "store_true"} if last.startswith("-") else {"metavar": last}
    parser.add_argument(*first, *([] if "metavar" in kind else [last]), help=help, **kind, **more)


def add_options(
    parser: Any,
    config: type[Config],
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    unset: bool = False,
) -> None:
    """Declare an option for each field of settings: its name, type, default, bounds and help.

    Args:
        parser: takes the fields in their groups; a group takes them all.
        config: the settings.
        only: names of fields; none stands for all.
        without: names of fields that have no option.
        names: what an option is called that is not called like its field.
        unset: what is not given is None, as other settings say what holds then; they check its bounds too.
    """
    groups: dict[str, Any] = {"": parser}
    for name, known in options(config).items():
        if name not in without and (not only or name in only):
            if known.group not in groups:
                whole = isinstance(parser, argparse._ArgumentGroup)
                groups[known.group] = parser if whole else parser.add_argument_group(known.group)
            add_option(groups[known.group], known, (names or {}).get(name, ""), unset=unset)


def add_option(parser: Any, known: Option, text: str = "", *, unset: bool = False) -> None:
    """Declare the option of one field.

    Args:
        parser: to add it to.
        known: the field.
        text: what it is called; "" for its own name.
        unset: its default is None.
    """
    off = known.type is bool and known.default is True
    text = text or f"--{'no-' * off}{known.name.replace('_', '-')}"
    default = None if unset else known.default
    help, _, otherwise = known.help.replace("%", "%%").partition("; None takes ")
    if known.type is bool:
        action, help = ("store_false", f"do not {help}") if off else ("store_true", help)
        parser.add_argument(text, dest=known.name, action=action, default=default, help=help)
        return
    if isinstance(known.allowed, tuple):
        help += f": {', '.join(known.allowed)}"
    if default is not None and default != ():
        values = default if isinstance(default, tuple) else (default,)
        otherwise = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    help += f" (default: {otherwise})" if otherwise else ""
    metavar = known.metavar or {int: "N", float: "X"}.get(known.type, known.name.rpartition("_")[2].upper())
    metavar += f",{metavar}" if known.count < 0 else ""
    parser.add_argument(
        text, dest=known.name, type=reader(known, bounds=not unset), default=default, metavar=metavar,
        help=help,
    )  # fmt: skip


def reader(known: Option, *, bounds: bool = True) -> Callable[[str], Any]:
    """Return what reads a word of the command line, and says what was wanted where it is something else."""

    def read(word: str) -> Any:
        value, problem = known.check(parsed := known.parse(word))
        if not bounds and isinstance(parsed, known.type):
            return parsed
        problem = problem or ("none" if value is None else "")
        if problem and isinstance(known.allowed, tuple):
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known.allowed)}")
        if problem:
            raise argparse.ArgumentTypeError(f"wanted {known.wanted}, not {word!r}")
        return value

    return read


def typed(kind: type, allowed: Allowed) -> Callable[[str], Any]:
    """Return such a reader for an option that is no field of settings."""
    return reader(Option("", kind, 0, False, None, allowed, "", (), "", ""))


def whole(low: int, high: int = 1_000_000) -> Callable[[str], int]:
    """Return a reader of whole numbers."""
    return typed(int, Range(low, high))


def settings_from(args: argparse.Namespace, config: type[C], **more: Any) -> C:
    """Return the settings that options describe.

    Args:
        args: the options; those of other settings, and None, do not matter.
        config: the settings.
        more: values that no option has.

    Raises:
        UsageError: a value is wrong, or values do not fit together; the message names the options.
    """
    given = {name: getattr(args, name, None) for name in options(config)} | more
    try:
        return config(**{name: value for name, value in given.items() if value is not None})
    except config.error as e:
        raise UsageError(spelled(str(e).removeprefix(f"{config.what}: "), args.parser)) from e


def spelled(message: str, parser: argparse.ArgumentParser) -> str:
    """Return a message of the library with the names of options in place of those of fields.

    A field is what stands in backquotes, with its value perhaps, or begins a line about what it must be; and
    of names that are no words, what must be, needs or was something: in "batch_size must be ..." it is the
    caller's, but in "the table: batch_size is ..." a file's.
    """
    actions = reversed(parser._actions)  # of several for one field the first counts
    names = {action.dest: action.option_strings[0] for action in actions if action.option_strings}

    def option(found: re.Match[str]) -> str:
        name, _, value = found["name"].partition("=")
        return f"{names[name]} {value}".strip() if name in names else name

    for pattern in (
        r"`(?P<name>[^`]+)`",
        r"(?m)(?:^|(?<=^  ))(?P<name>\w+)(?= must )",
        r"\b(?P<name>[a-z0-9]+(_[a-z0-9]+)+)(?= must | needs | was )",
    ):
        message = re.sub(pattern, option, message)
    return message

"""What ``proxylessnas train``, ``finetune`` and ``search`` have in common."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import one_line
from ._arguments import add_imports, add_json, imports_given
from ._options import add, add_options, settings_from
from ._output import main_process, note, pairs, print_json

if TYPE_CHECKING:
    from ..search.recipe import SearchRecipe
    from ..train import Data, Recipe, Settings

    R = TypeVar("R", Recipe, SearchRecipe)

DATA_HELP = (
    "one folder of images a class, also with train/ and val/ in it; or a named data set: cifar10, "
    "cifar100, fashion-mnist (NAME:FOLDER says where it is), digits (comes with the package)"
)
_CHANGES = ("epochs", "batch_size", "learning_rate", "image_size", "seed")
_FEW_STEPS = 8  # an epoch: below that, smaller batches


def add_arguments(parser: argparse.ArgumentParser, recipe: str, *more: str) -> None:
    """Declare the arguments of ``train`` and ``finetune``: the default recipe, and more options of it."""
    from ..train.recipe import Recipe

    add(parser, "data DATA", DATA_HELP)
    add(parser, "--val DIR", "validation images, where DATA does not hold them; or a share to hold out")
    add(
        parser,
        "--out DIR",
        "folder of the run (default: runs/MODEL-DATA); a run that is there is continued",
        type=Path,
    )
    add(parser, "--limit N", "only so many training images a class, for a try", type=int)
    parser.add_argument(
        "--teacher", metavar="MODEL", action="append",
        help="learn from the answers of a trained model of the same classes too: a model of the zoo, a "
        ".safetensors file, or a program of torch.export (.pt2); may be repeated",
    )  # fmt: skip
    group = add_recipe(parser, "train", "recipe.toml", "mixup_alpha=0.2")
    add(group, "--recipe NAME", f"preset or .toml file (default: {recipe})", default=recipe)
    add_options(group, Recipe, only=(*_CHANGES, *more), names={"learning_rate": "--lr"}, unset=True)
    add(add_run(parser), "--restart", "begin anew; an earlier run in DIR is renamed")


def add_recipe(parser: argparse.ArgumentParser, package: str, file: str, example: str) -> Any:
    """Declare what changes a recipe of ``train`` or ``search`` or shows it, and return the group."""

    class ListRecipes(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            presets = importlib.import_module(f"proxylessnas.{package}.presets")
            print(pairs(list(presets.ABOUT.items())))
            parser.exit()

    group = parser.add_argument_group("recipe", f"What decides the result; it is written to DIR/{file}.")
    add(group, "--show-recipe", "print the resolved recipe and stop")
    group.add_argument("--list-recipes", action=ListRecipes, nargs=0, help="list the presets and stop")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help=f"change any value of the recipe, such as {example}; may be repeated",
    )  # fmt: skip
    return group


def add_run(parser: argparse.ArgumentParser, *without: str) -> Any:
    """Declare where and how a run is carried out, and return the group."""
    from ..train.settings import Settings

    group = parser.add_argument_group("run", "Where and how; none of it changes the result.")
    add_options(group, Settings, without=("console", *without))
    add(group, "--system-malloc", "leave glibc's memory settings as they are")
    add_imports(group)
    add(group, "--quiet", "no progress on the terminal")
    add_json(group, "the result as one JSON document")
    return group


def resolved(args: argparse.Namespace, word: str, base: R, given: Mapping[str, Any]) -> R:
    """Return a recipe with the changes that the options ask for.

    Args:
        args: the options.
        word: name or file of a recipe.
        base: what a file starts from that says only what is different: the command's default.
        given: values by name; None is none.
    """
    is_file = word.lower().endswith(".toml")
    recipe = base.from_toml(Path(word), base=base) if is_file else base.read(word)
    given = {name: value for name, value in given.items() if value is not None}
    if args.batch_size is not None and not (
        given.keys() & {"learning_rate"} or is_set(args, "learning_rate")
    ):
        recipe = recipe.with_batch_size(args.batch_size)
    return recipe.changed(args.changes, given)


def is_set(args: argparse.Namespace, name: str) -> bool:
    """Return whether ``--set`` changes a value of a recipe for weights."""
    words = [text.partition("=")[0].strip().replace("-", "_") for text in args.changes]
    return name in words or f"weights.{name}" in words


def resolved_recipe(args: argparse.Namespace, **more: Any) -> Recipe:
    """Return the training recipe that the options ask for."""
    from ..train.recipe import Recipe

    given = {name: getattr(args, name) for name in _CHANGES} | more
    return resolved(args, args.recipe, Recipe.preset(args.parser.get_default("recipe")), given)


def fitted(recipe: Recipe, data: Data, args: argparse.Namespace) -> Recipe:
    """Return the recipe with smaller batches where the images would make a few steps an epoch only."""
    images = len(data.train)
    says = args.recipe.lower().endswith(".toml") and (images >= recipe.batch_size or _says_batch(args.recipe))
    if args.batch_size is not None or is_set(args, "batch_size") or says:
        return recipe
    return smaller_batches(recipe, images, "training images", "--batch-size and --lr say")


def smaller_batches(recipe: R, images: int, of: str, otherwise: str) -> R:
    """Return the recipe with batches halved until an epoch has some steps, and say so.

    Args:
        recipe: of a training or a search.
        images: that its weights are trained on.
        of: what they are.
        otherwise: the options that say otherwise, and "say".
    """
    weights: Any = getattr(recipe, "weights", recipe)
    size = weights.batch_size
    while size > 4 and images // size < _FEW_STEPS:
        size //= 2
    if size == weights.batch_size or size % weights.accumulate:
        return recipe
    smaller = recipe.with_batch_size(size)
    if main_process():
        changed: Any = getattr(smaller, "weights", smaller)
        note(
            f"{images:,} {of}: batches of {size} in place of {weights.batch_size}, with a learning rate "
            f"of {changed.learning_rate:.3g} ({otherwise} otherwise)"
        )
    return smaller


def _says_batch(recipe: str) -> bool:
    """Return whether a recipe file sets the batch size itself; else it may be made to fit few images."""
    from ..utils.config import read_toml

    return "batch_size" in read_toml(Path(recipe), "recipe")[1]


def opened_data(args: argparse.Namespace, recipe: Recipe) -> Data:
    """Return the images that the arguments name; their classes are the first thing that a run shows."""
    from ..data.open import class_counts
    from ..train import open_data

    val, fraction = _share_or_folder(args.val), recipe.val_fraction
    data = open_data(args.data, val=val, val_fraction=fraction, seed=recipe.seed, limit=args.limit)
    if main_process():
        note(class_counts(data))
    return data


def _share_or_folder(text: str | None) -> float | str | None:
    """Return ``--val`` as a number where it is one and no folder is called so."""
    if text is None or os.path.exists(text):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def settings(args: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for."""
    from ..train.settings import Settings

    out = args.out if args.out is not None else Path("runs", f"{_plain(args.model)}-{_plain(args.data)}")
    found = settings_from(args, Settings, out=out, console=not args.quiet)
    if getattr(args, "restart", False) and main_process():
        _move_aside(out)
    return found


def _move_aside(out: Path) -> None:
    """Rename the folder of an earlier run, if there is one."""
    from ..errors import CheckpointError

    if not out.exists():
        return
    number = 1
    while (old := out.with_name(f"{out.name}.old{number}")).exists():
        number += 1
    try:
        out.rename(old)
    except OSError as e:
        raise CheckpointError(f"{out}: cannot be renamed to {old.name} ({e.strerror})") from e
    note(f"the run that was in {out} is now in {old}")


def _plain(text: str) -> str:
    """Return a name that will do for a folder: of a path its last part, of "cifar10:/data" the name."""
    from ..models.resolve import looks_like_path

    if looks_like_path(text) or os.sep in text:
        path = Path(text.rstrip("/\\") or text).resolve()
        text = path.parent.name if path.name in ("model.safetensors", "train") else path.stem
    return re.sub(r"[^\w.-]+", "_", text.partition(":")[0]) or "run"


def keep_pages(args: argparse.Namespace) -> None:
    """Make a CPU run fast and steady on Linux, and say so."""
    if args.system_malloc or not sys.platform.startswith("linux") or args.device.startswith(("cuda", "mps")):
        return
    if any(name in os.environ.get("LD_PRELOAD", "") for name in ("tcmalloc", "jemalloc")):
        return
    from ..utils.malloc import keep_freed_pages

    if keep_freed_pages() and not args.quiet and main_process():
        note("freed memory stays in the process (glibc's mallopt): steps on a CPU are faster and steadier; "
             "--system-malloc leaves that out")  # fmt: skip


def report(args: argparse.Namespace, result: Any, document: Mapping[str, Any], *use: str) -> int:
    """Print the result; return 0, or what a shell reports for the signal that stopped the run.

    Args:
        args: the options.
        result: of a training or a search.
        document: it, for ``--json``.
        use: what to do with the model: words before its file, and behind it.
    """
    if args.json and main_process():
        print_json(document)
    elif result.finished and main_process():
        print(one_line(result.model))
        note(f"{use[0]} {shlex.quote(str(result.model))} {use[1]}{imports_given(args)}")
    return 0 if result.finished else 128 + (result.signal or 2)


def train(args: argparse.Namespace, recipe: Recipe, start: Any) -> int:
    """Carry out ``train`` or ``finetune``, and report."""
    from ..train.run import run_from

    keep_pages(args)
    data = opened_data(args, recipe)
    result = run_from(
        args.model, data, fitted(recipe, data, args), settings(args), start, teacher=args.teacher, told=True
    )
    document = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(result).items()}
    return report(args, result, document, "use it: proxylessnas predict", "PICTURE")

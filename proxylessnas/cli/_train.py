"""What ``proxylessnas train`` and ``proxylessnas finetune`` have in common."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..models.resolve import looks_like_path
from ._arguments import add_imports
from ._command import UsageError
from ._model import imports_given
from ._output import note, pairs, print_json

if TYPE_CHECKING:
    from ..train import Data, Recipe, Settings

DATA_HELP = (
    "one folder of pictures a class, also with train/ and val/ in it; or a named data set: cifar10, "
    "cifar100, fashion-mnist (NAME:FOLDER says where it is), digits (comes with the package)"
)


_FEW_STEPS = 8  # an epoch: below that, smaller batches


def add_list_recipes(parser: argparse._ActionsContainer, package: str) -> None:
    """Declare an option that, like ``--help``, prints the presets of ``train`` or ``search`` and ends."""

    class ListRecipes(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            presets = importlib.import_module(f"proxylessnas.{package}.presets")
            print(pairs(list(presets.ABOUT.items())))
            parser.exit()

    parser.add_argument("--list-recipes", action=ListRecipes, nargs=0, help="list the presets and stop")


def add_arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Declare the arguments of both commands; ``recipe`` is the default one."""
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--val",
        metavar="DIR",
        help="validation pictures, where DATA does not hold them; or a share to hold out",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path,
        help="folder of the run (default: runs/NET-DATA); a run that is there is continued",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many training pictures a class, for a try"
    )
    parser.add_argument(
        "--teacher", metavar="NET", action="append",
        help="learn from the answers of a trained net of the same classes too: a net of the zoo, a "
        ".safetensors file, or a program of torch.export (.pt2); may be repeated",
    )  # fmt: skip
    group = parser.add_argument_group("recipe", "What decides the result; it is written to DIR/recipe.toml.")
    group.add_argument(
        "--recipe", default=recipe, metavar="NAME", help=f"preset or .toml file (default: {recipe})"
    )
    group.add_argument(
        "--show-recipe", action="store_true", help="print the resolved recipe as TOML and stop"
    )
    add_list_recipes(group, "train")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change any value of the recipe, such as mixup_alpha=0.2; may be repeated",
    )  # fmt: skip
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the pictures")
    group.add_argument("--batch-size", type=int, metavar="N", help="pictures a step, over all processes")
    group.add_argument("--lr", type=float, metavar="RATE", dest="learning_rate", help="highest learning rate")
    group.add_argument("--image-size", type=int, metavar="N", help="side of the net's input, px")
    group.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    group = parser.add_argument_group("run", "Where and how; none of it changes the result.")
    group.add_argument("--restart", action="store_true", help="begin anew; an earlier run in DIR is renamed")
    group.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, mps"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes that read pictures (default: chosen)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads of torch on a CPU")
    group.add_argument(
        "--save-every", type=int, default=0, metavar="N", help="steps between checkpoints in an epoch"
    )
    group.add_argument(
        "--keep-every", type=int, default=0, metavar="N", help="epochs between checkpoints kept for good"
    )
    group.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="SHARE",
        help="share of damaged pictures that stops the run (default: 0.01)",
    )  # fmt: skip
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard files too")
    add_imports(group)
    group.add_argument(
        "--system-malloc", action="store_true", help="leave glibc's memory settings as they are"
    )
    group.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    group.add_argument("--json", action="store_true", help="print the result as one JSON document")


def told(args: argparse.Namespace, **more: Any) -> bool:
    """Print what was asked to be shown instead of a run, and return whether there was anything."""
    if args.show_recipe:
        print(resolved_recipe(args, **more).to_toml(), end="")
    return bool(args.show_recipe)


def resolved_recipe(args: argparse.Namespace, **more: Any) -> Recipe:
    """Return the recipe with the changes that the options ask for."""
    from ..train.recipe import Recipe, read_recipe

    # A file that says only what is different is meant to start from what the command would do without it.
    base = Recipe.preset(args.parser.get_default("recipe"))
    is_file = args.recipe.lower().endswith(".toml")
    recipe = Recipe.from_toml(Path(args.recipe), base=base) if is_file else read_recipe(args.recipe)
    names = ("epochs", "batch_size", "learning_rate", "image_size", "seed")
    options = {name: getattr(args, name) for name in names} | more
    given = {name: value for name, value in options.items() if value is not None}
    if args.batch_size is not None and args.learning_rate is None:
        recipe = recipe.with_batch_size(args.batch_size)
    return recipe.changed(args.changes, given)


def fitting_batch(pictures: int, size: int) -> int:
    """Return a batch size, halved until an epoch has some steps."""
    while size > 4 and pictures // size < _FEW_STEPS:
        size //= 2
    return size


def fitted(recipe: Recipe, data: Data, args: argparse.Namespace) -> Recipe:
    """Return the recipe with smaller batches where the pictures would make a few steps an epoch only."""
    pictures, size = len(data.train), recipe.batch_size
    asked = args.batch_size is not None or any(text.startswith("batch_size") for text in args.changes)
    if asked or (args.recipe.lower().endswith(".toml") and (pictures >= size or _says_batch(args.recipe))):
        return recipe
    size = fitting_batch(pictures, size)
    if size == recipe.batch_size or size % recipe.accumulate:
        return recipe
    smaller = recipe.with_batch_size(size)
    if _main_process():
        note(
            f"{pictures:,} training pictures: batches of {size} in place of {recipe.batch_size}, with a "
            f"learning rate of {smaller.learning_rate:.3g} (--batch-size and --lr say otherwise)"
        )
    return smaller


def _says_batch(recipe: str) -> bool:
    """Return whether a recipe file sets the batch size itself; else it may be made to fit few pictures."""
    from ..utils.config import read_toml

    return "batch_size" in read_toml(Path(recipe), "recipe")[1]


def opened_data(args: argparse.Namespace, recipe: Recipe) -> Data:
    """Return the pictures that the arguments name; their classes are the first thing that a run shows."""
    from ..data.open import class_counts
    from ..train import open_data

    data = open_data(
        args.data,
        val=_share_or_folder(args.val),
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
        limit=args.limit,
    )
    if _main_process():
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
    from ..train import Settings

    out = args.out if args.out is not None else Path("runs", f"{_plain(args.net)}-{_plain(args.data)}")
    if args.restart and _main_process():
        _move_aside(out)
    try:
        return Settings(
            out, args.device, args.workers, args.threads, args.save_every, args.keep_every,
            args.max_unreadable, args.tensorboard, not args.quiet,
        )  # fmt: skip
    except ValueError as e:
        raise UsageError("--" + re.sub(r"^\w+", lambda m: m[0].replace("_", "-"), str(e))) from e


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

    if keep_freed_pages() and not args.quiet and _main_process():
        note("freed memory stays in the process (glibc's mallopt): steps on a CPU are faster and steadier; "
             "--system-malloc leaves that out")  # fmt: skip


def report(args: argparse.Namespace, result: Any) -> int:
    """Print the result; return 0, or what a shell reports for the signal that stopped the run."""
    if args.json and _main_process():
        document = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(result).items()}
        print_json(document)
    elif result.finished and not args.json and _main_process():
        print(one_line(result.model))
        note(f"use it: proxylessnas predict {result.model} PICTURE{imports_given(args)}")
    return 0 if result.finished else 128 + (result.signal or 2)


def _main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"

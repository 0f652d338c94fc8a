"""``proxylessnas search run``, ``resume`` and ``derive``, and what they print in the end."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..utils.progress import clock
from ._command import UsageError, Verb
from ._latency import SPACE_HELP, TABLE_HELP, add_imports
from ._model import imports_given
from ._output import note, pairs, print_json
from ._train import DATA_HELP, add_list_recipes, fitting_batch, keep_pages, settings

if TYPE_CHECKING:
    from ..search import SearchRecipe, SearchResult
    from ..search.dry_run import DryRun


ALGORITHMS = ("gradient", "reinforce", "random", "evolution")
_DEFAULT_RECIPE = "small"


class Run(Verb):
    """Searches."""

    name = "run"
    summary = "search for a model"
    description = (
        "Search the space S for a model that is accurate on the images in DATA and meets the targets. A part "
        "of the training images is held out to judge models by; folders called val or test are not looked "
        "into. Killed at any moment, the same command (or `search resume DIR`) goes on. Under torchrun it "
        "searches on several GPUs, CPUs or machines. DIR gets arch.txt, net.config, child.safetensors, the "
        "recipe and the logs."
    )
    example = """\
  $ proxylessnas search run --space tiny --data digits --target-macs 2 --recipe tiny --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("--space", required=True, metavar="S", help=SPACE_HELP)
        parser.add_argument("--data", required=True, metavar="DATA", help=DATA_HELP)
        parser.add_argument(
            "--out", metavar="DIR", type=Path,
            help="folder of the run (default: runs/search-SPACE-DATA); a run that is there is continued",
        )  # fmt: skip
        parser.add_argument("--limit", type=int, metavar="N", help="only so many images a class, for a try")
        _add_targets(parser, "the model that is searched")
        group = parser.add_argument_group(
            "recipe", "What decides the result; it is written to DIR/search.toml."
        )
        group.add_argument("--algorithm", metavar="A", help=f"{', '.join(ALGORITHMS)} (default: gradient)")
        group.add_argument(
            "--recipe", metavar="NAME",
            help=f"preset or .toml file (default: the one called like the space, else {_DEFAULT_RECIPE})",
        )  # fmt: skip
        group.add_argument("--show-recipe", action="store_true", help="print the resolved recipe and stop")
        add_list_recipes(group, "search")
        group.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
            help="change any value of the recipe, such as arch_rate=0.01; may be repeated",
        )  # fmt: skip
        group.add_argument("--warmup-epochs", type=int, metavar="N", help="epochs before the search proper")
        group.add_argument("--epochs", type=int, metavar="N", help="epochs of the search")
        group.add_argument("--batch-size", type=int, metavar="N", help="images a step, over all processes")
        group.add_argument("--image-size", type=int, metavar="N", help="side of the models' input, px")
        group.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
        group = _add_how(parser)
        group.add_argument("--dry-run", action="store_true", help="time a few steps, and train nothing")
        group.add_argument("--force", action="store_true", help="search with a table that predicts badly too")
        group.add_argument("--restart", action="store_true", help="begin anew; a run in DIR is renamed")

    def run(self, args: argparse.Namespace) -> int:
        """Search and report."""
        recipe = resolved_recipe(args)
        if args.show_recipe:
            print(recipe.to_toml(), end="")
            return 0
        if args.dry_run and args.restart:
            raise UsageError(
                "--restart moves a run out of the way, and --dry-run touches none: leave one out"
            )
        keep_pages(args)
        recipe = _fitted(recipe, args)
        if not recipe.targets and main_process():
            note("no target is set (--target-ms, --target-macs, --target-params): accuracy alone decides")
        asked: dict[str, Any] = {"table": args.table, "force": args.force, "limit": args.limit}
        args.net = f"search-{_space_name(args.space)}"
        if args.dry_run:
            from ..search.dry_run import dry_run

            found = dry_run(args.space, args.data, recipe, settings=settings(args), **asked)
            return report_dry_run(args, found)
        from ..search import search

        return report(args, search(args.space, args.data, recipe, out=settings(args), **asked))


class Resume(Verb):
    """Goes on with a search."""

    name = "resume"
    summary = "go on with a search that was stopped"
    description = (
        "Go on with the search in DIR from its last checkpoint, with the recipe, the space, the images and "
        "the table that it began with. On a CPU the result is that of a search in one piece, to the bit."
    )
    example = """\
  $ proxylessnas search resume runs/a
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("out", metavar="DIR", type=Path, help="folder of the search")
        parser.add_argument("--data", metavar="DATA", help="the images, where they are somewhere else now")
        _add_how(parser)
        parser.set_defaults(restart=False, model="")

    def run(self, args: argparse.Namespace) -> int:
        """Search and report."""
        keep_pages(args)
        from ..search.run import resume

        return report(args, resume(args.out, settings(args), data=args.data))


class Derive(Verb):
    """Derives another model."""

    name = "derive"
    summary = "derive another model from a search"
    description = (
        "Write the most probable model of the search in DIR that meets other targets, with the weights that "
        "it inherits. The search need not have come to its end. What was learnt for one target is a "
        "compromise for another: far from it, search anew."
    )
    example = """\
  $ proxylessnas search derive runs/a --target-ms 3 --out models/fast
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the search")
        parser.add_argument(
            "--out", "-o", "--output", required=True, metavar="FOLDER", type=Path, dest="output",
            help="folder for the model; a new one",
        )  # fmt: skip
        _add_targets(parser, "the model; with none of them, those of the search hold", table=False)
        parser.add_argument("--data", metavar="DATA", help="the images, where they are somewhere else now")
        parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, mps")
        parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on a CPU")
        add_imports(parser)
        parser.add_argument("--json", action="store_true", help="print the result as one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Derive and report."""
        if args.threads is not None and not 1 <= args.threads <= 1024:
            raise UsageError(f"--threads must be from 1 to 1024, not {args.threads}")
        import torch

        from ..search.run import derive

        if args.threads is not None:
            torch.set_num_threads(args.threads)
        result = derive(args.folder, args.output, data=args.data, device=args.device, **_targets(args))
        for text in cost_notes(result) if main_process() else ():
            note(text)
        return report(args, result)


def _add_targets(parser: argparse.ArgumentParser, what: str, *, table: bool = True) -> None:
    """Declare the limits on a model, which may be several."""
    group = parser.add_argument_group("targets", f"At most so much, of {what}; several may be given.")
    group.add_argument("--target-ms", type=float, metavar="MS", help="latency by the table, milliseconds")
    group.add_argument(
        "--target-macs", type=float, metavar="M", dest="target_macs_m", help="multiply-accumulates, millions"
    )
    group.add_argument(
        "--target-params", type=float, metavar="M", dest="target_params_m", help="parameters, millions"
    )
    if table:
        group.add_argument("--table", metavar="T", help=TABLE_HELP)


def _add_how(parser: argparse.ArgumentParser) -> Any:
    """Declare where and how a search is carried out."""
    group = parser.add_argument_group("run", "Where and how; none of it changes the result.")
    group.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, mps"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: chosen)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads of torch on a CPU")
    group.add_argument(
        "--save-every", type=int, default=0, metavar="N", help="steps between checkpoints in an epoch"
    )
    group.add_argument("--tensorboard", action="store_true", help="write TensorBoard files too")
    group.add_argument(
        "--system-malloc", action="store_true", help="leave glibc's memory settings as they are"
    )
    add_imports(group)
    group.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    group.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.set_defaults(keep_every=0, max_unreadable=0.01)
    return group


def resolved_recipe(args: argparse.Namespace) -> SearchRecipe:
    """Return the recipe with the changes that the options ask for."""
    from ..search.presets import PRESETS
    from ..search.recipe import SearchRecipe, read_search_recipe

    word = args.recipe
    if word is None:
        name = args.space.partition("@")[0].strip().lower()
        word = name if name in PRESETS else _DEFAULT_RECIPE
    # A file that says only what is different is meant to start from what would be done without it.
    is_file = word.lower().endswith(".toml")
    recipe = (
        SearchRecipe.from_toml(Path(word), base=SearchRecipe.preset(_DEFAULT_RECIPE))
        if is_file
        else read_search_recipe(word)
    )
    names = ("algorithm", "warmup_epochs", "epochs", "batch_size", "image_size", "seed")
    given = {name: getattr(args, name) for name in names} | _targets(args)
    given = {name: value for name, value in given.items() if value is not None}
    if args.batch_size is not None and not _is_set(args, "learning_rate"):
        recipe = recipe.with_batch_size(args.batch_size)
    return recipe.changed(args.changes, given)


def _targets(args: argparse.Namespace) -> dict[str, float | None]:
    return {name: getattr(args, name) for name in ("target_ms", "target_macs_m", "target_params_m")}


def _is_set(args: argparse.Namespace, name: str) -> bool:
    """Return whether ``--set`` changes a value of the weights."""
    words = [text.partition("=")[0].strip().replace("-", "_") for text in args.changes]
    return name in words or f"weights.{name}" in words


def _fitted(recipe: SearchRecipe, args: argparse.Namespace) -> SearchRecipe:
    """Return the recipe with smaller batches where the images would make a few steps an epoch only."""
    asked = args.batch_size is not None or _is_set(args, "batch_size")
    if asked or (args.recipe or "").lower().endswith(".toml"):
        return recipe
    from ..search.data import open_search_data

    data = open_search_data(args.data, arch_fraction=recipe.arch_fraction, seed=recipe.seed, limit=args.limit)
    images, size = len(data.weights.train), recipe.weights.batch_size
    size = fitting_batch(images, size)
    if size == recipe.weights.batch_size or size % recipe.weights.accumulate:
        return recipe
    smaller = recipe.with_batch_size(size)
    if main_process():
        note(
            f"{images:,} images to train weights on: batches of {size} in place of "
            f"{recipe.weights.batch_size}, with a learning rate of {smaller.weights.learning_rate:.3g} "
            "(--batch-size says otherwise)"
        )
    return smaller


def _space_name(word: str) -> str:
    return Path(word).stem if word.lower().endswith(".toml") else word


RUN, RESUME, DERIVE = Run(), Resume(), Derive()


UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def number(value: float) -> str:
    """Return a cost to three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def main_process() -> bool:
    """Return whether this process, of several under torchrun, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def report(args: argparse.Namespace, result: SearchResult) -> int:
    """Print the result; return 0, or what a shell reports for the signal that stopped the search."""
    if args.json and main_process():
        print_json({**result.to_dict(), "folder": str(result.folder), "signal": result.signal})
    elif result.finished and main_process():
        print(one_line(result.model))
        data = shlex.quote(str(getattr(args, "data", None) or "DATA"))
        command = f"proxylessnas finetune {shlex.quote(str(result.model))} {data}{imports_given(args)}"
        note(f"train it further, with the classifier it has: {command}")
    return 0 if result.finished else 128 + (result.signal or 2)


def cost_notes(result: SearchResult) -> list[str]:
    """Return in words what a model costs, and at most may."""
    found = []
    for name, cost in result.costs.items():
        unit = UNITS.get(name, "")
        limit = f" of at most {number(result.limits[name])} {unit}" if name in result.limits else ""
        found.append(f"{name}: {number(cost)} {unit}{limit}")
    if result.measured_ms is not None:
        found.append(f"latency: measured {number(result.measured_ms)} ms")
    elif result.measured_note:
        found.append(f"latency: {result.measured_note}")
    return found


def report_dry_run(args: argparse.Namespace, found: DryRun) -> int:
    """Print what a search would take."""
    if not main_process():
        return 0
    if args.json:
        print_json(dataclasses.asdict(found))
        return 0
    for text in found.notes:
        note(text)
    rows = [
        ("time", f"about {clock(found.total_s)}"),
        ("weight steps", f"{found.weight_steps:,} of {1e3 * found.weight_step_s:.0f} ms"),
    ]
    if found.arch_step_s is not None:
        rows.append(("arch steps", f"{found.arch_steps:,} of {1e3 * found.arch_step_s:.0f} ms"))
    if found.judging_s is not None:
        models = f"{found.judgings:,} models" if found.judgings else "a model at the end of each epoch"
        rows.append(("judging", f"{models}, {found.judging_s:.1f} s each"))
    if found.memory_mib is not None:
        rows.append(("memory", f"{found.memory_mib:,.0f} MiB at most so far"))
    weights, arch = found.images
    rows.append(("images", f"{weights:,} to train weights on, {arch:,} held out for the architecture"))
    if found.coverage is not None:
        have, need = found.coverage
        rows.append(("table", f"holds {have:,} of the {need:,} operations of the space"))
    print(pairs(rows))
    note("nothing was trained or written")
    return 0

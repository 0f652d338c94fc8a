"""``proxylessnas search run``, ``resume`` and ``derive``, and what they print in the end."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import DataError, shown
from ..utils.progress import clock
from . import _train
from ._arguments import ANY_SPACE_HELP, TABLE_HELP, add_imports, add_json
from ._command import Command, UsageError
from ._front import front_text
from ._options import add, add_options, settings_from, spelled
from ._output import UNITS, main_process, note, pairs, print_json

if TYPE_CHECKING:
    from ..search import SearchRecipe, SearchResult
    from ..search.run import DryRun
    from ..search.seeds import SeedResults

_DEFAULT_RECIPE = "small"
_RECIPES = {"cpu26": "imagenet+", "cifar-tree": "cifar+"}  # of spaces that no preset is called like
_TARGETS = {
    "target_ms": "--target-ms", "target_macs_m": "--target-macs", "target_params_m": "--target-params",
}  # fmt: skip
_CHANGES = ("algorithm", "warmup_epochs", "epochs")
_OF_WEIGHTS = ("batch_size", "image_size", "seed")


class Run(Command):
    """Search for a model.

    Search the space S for a model that is accurate on the images in DATA and meets the targets. A part of the
    training images is held out to judge models by; folders called val or test are not looked into. Killed at
    any moment, the same command (or `search resume DIR`) goes on. Under torchrun it searches on several GPUs,
    CPUs or machines. DIR gets arch.txt, net.config, child.safetensors, the recipe and the logs.
    """

    name = "run"
    example = """\
  $ proxylessnas search run --space tiny --data digits --target-macs 2 --recipe tiny --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..search.recipe import SearchRecipe
        from ..train.recipe import Recipe

        add(parser, "--space S", ANY_SPACE_HELP, required=True)
        add(parser, "--data DATA", _train.DATA_HELP, required=True)
        add(
            parser,
            "--out DIR",
            "folder of the run (default: runs/search-SPACE-DATA); a run that is there is continued",
            type=Path,
        )
        add(parser, "--limit N", "only so many images a class, for a try", type=int)
        add(_add_targets(parser, "the model that is searched"), "--table T", TABLE_HELP)
        group = _train.add_recipe(parser, "search", "search.toml", "arch_rate=0.01")
        add(
            group,
            "--recipe NAME",
            "preset or .toml file (default: the one called like the space, with our additions: imagenet+ for "
            f"imagenet and cpu26, cifar+ for cifar-tree; else {_DEFAULT_RECIPE})",
        )
        add_options(group, SearchRecipe, only=_CHANGES, unset=True)
        add_options(group, Recipe, only=_OF_WEIGHTS, unset=True)
        add(
            group,
            "--seeds S,S,S",
            "search once with each seed, into DIR/seed-S, and print mean and spread",
            type=_seeds,
        )
        group = _train.add_run(parser, "keep_every", "max_unreadable")
        add(group, "--dry-run", "time a few steps, and train nothing")
        add(group, "--force", "search with a table that predicts badly too")
        add(group, "--restart", "begin anew; a run in DIR is renamed")

    def run(self, args: argparse.Namespace) -> int:
        recipe = resolved_recipe(args)
        if args.show_recipe:
            print(recipe.to_toml(), end="")
            return 0
        if args.dry_run and args.restart:
            raise UsageError(
                "--restart moves a run out of the way, and --dry-run touches none: leave one out"
            )
        if args.seeds and (args.seed is not None or _train.is_set(args, "seed")):
            raise UsageError("--seeds says all seeds: leave out --seed, or seed in --set")
        if args.seeds and args.dry_run:
            raise UsageError("--dry-run is of one search: leave out --seeds")
        _train.keep_pages(args)
        recipe = _fitted(recipe, args)
        if not recipe.targets and main_process():
            note("no target is set (--target-ms, --target-macs, --target-params): accuracy alone decides")
        asked: dict[str, Any] = {"table": args.table, "force": args.force, "limit": args.limit}
        space = Path(args.space).stem if args.space.lower().endswith(".toml") else args.space
        args.model = f"search-{space}"
        if args.dry_run:
            from ..search.run import dry_run

            found = dry_run(args.space, args.data, recipe, settings=_train.settings(args), **asked)
            return report_dry_run(args, found)
        if args.seeds:
            from ..search import search_seeds

            settings = _train.settings(args)
            return report_seeds(
                args, search_seeds(args.space, args.data, recipe, args.seeds, out=settings, **asked)
            )
        from ..search import search

        return report(args, search(args.space, args.data, recipe, out=_train.settings(args), **asked))


class Resume(Command):
    """Go on with a search that was stopped.

    Go on with the search in DIR from its last checkpoint, with the recipe, the space, the images and the
    table that it began with. On a CPU the result is that of a search in one piece, to the bit.
    """

    name = "resume"
    example = """\
  $ proxylessnas search resume runs/a
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "out DIR", "folder of the search", type=Path)
        add(parser, "--data DATA", "the images, where they are somewhere else now")
        _train.add_run(parser, "keep_every", "max_unreadable")

    def run(self, args: argparse.Namespace) -> int:
        _train.keep_pages(args)
        from ..search.run import resume

        return report(args, resume(args.out, _train.settings(args), data=args.data))


class Derive(Command):
    """Derive another model from a search.

    Write a model of the search in DIR that meets other targets, with the weights that it inherits: the best
    of those that its recipe evaluates at the end, or the most probable one. The search need not have come to
    its end. What was learnt for one target is a compromise for another: far from it, search anew.
    """

    name = "derive"
    example = """\
  $ proxylessnas search derive runs/a --target-ms 3 --out models/fast
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..train.settings import Settings

        add(parser, "folder DIR", "folder of the search", type=Path)
        add(
            parser,
            "--out -o --output FOLDER",
            "folder for the model; a new one",
            required=True,
            type=Path,
            dest="output",
        )
        _add_targets(parser, "the model; with none of them, those of the search hold", learnt=False)
        add(parser, "--data DATA", "the images, where they are somewhere else now")
        add_options(parser, Settings, only=("device", "threads"))
        add_imports(parser)
        add_json(parser, "the result as one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        from ..train.settings import Settings

        settings = settings_from(args, Settings, out=args.output)
        import torch

        from ..search.run import derive
        from ..utils.malloc import keep_freed_pages

        keep_freed_pages()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        targets = {name: getattr(args, name) for name in _TARGETS}
        result = derive(args.folder, args.output, data=args.data, device=settings.device, **targets)
        for text in cost_notes(result) if main_process() else ():
            note(text)
        return report(args, result)


def _seeds(text: str) -> list[int]:
    """Return the seeds in a text such as 0,1,2."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) != len(words):
        raise argparse.ArgumentTypeError(f"wanted different whole numbers such as 0,1,2, not {shown(text)}")
    return [int(word) for word in words]


def _add_targets(parser: argparse.ArgumentParser, what: str, *, learnt: bool = True) -> Any:
    """Declare the limits on a model, which may be several, and return their group."""
    from ..search.recipe import SearchRecipe

    group = parser.add_argument_group(
        "targets",
        f"At most so much, of {what}; several may be given.\n  Several limits of the first (3,5,8) make "
        "a model each" + (": the architecture is\n  learnt for the one in the middle." if learnt else "."),
    )
    add_options(group, SearchRecipe, only=_TARGETS, names=_TARGETS, unset=True)
    for action in group._group_actions:
        action.type = _limits(cast(Callable[[str], float], action.type))
    return group


def _limits(read: Callable[[str], float]) -> Callable[[str], Any]:
    """Return what reads one limit, or several with commas in between."""

    def limits(word: str) -> float | tuple[float, ...]:
        found = tuple(map(read, word.split(",")))
        return found if len(found) > 1 else found[0]

    return limits


def resolved_recipe(args: argparse.Namespace) -> SearchRecipe:
    """Return the recipe with the changes that the options ask for."""
    from ..search.presets import PRESETS
    from ..search.recipe import SearchRecipe, several_targets

    word = args.recipe
    if word is None:
        name = args.space.partition("@")[0].strip().lower()
        names = (f"{name}+", name, _RECIPES.get(name))
        word = next((w for w in names if w in PRESETS), _DEFAULT_RECIPE)
    given = {name: getattr(args, name) for name in (*_CHANGES, *_OF_WEIGHTS)}
    try:
        given |= several_targets({name: getattr(args, name) for name in _TARGETS})
    except DataError as e:
        raise UsageError(spelled(str(e), args.parser)) from e
    return _train.resolved(args, word, SearchRecipe.preset(_DEFAULT_RECIPE), given)


def _fitted(recipe: SearchRecipe, args: argparse.Namespace) -> SearchRecipe:
    """Return the recipe with smaller batches where the images would make a few steps an epoch only."""
    asked = args.batch_size is not None or _train.is_set(args, "batch_size")
    if asked or (args.recipe or "").lower().endswith(".toml"):
        return recipe
    from ..search.data import open_search_data

    data = open_search_data(args.data, arch_fraction=recipe.arch_fraction, seed=recipe.seed, limit=args.limit)
    images = len(data.train)
    return _train.smaller_batches(recipe, images, "images to train weights on", "--batch-size says")


def number(value: float) -> str:
    """Return a cost to three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def report(args: argparse.Namespace, result: SearchResult) -> int:
    """Print the result; return the exit code."""
    document = {**result.to_dict(), "folder": str(result.folder), "signal": result.signal}
    data = shlex.quote(str(getattr(args, "data", None) or "DATA"))
    if result.front and not args.json and main_process():
        print(front_text(document["front"]))
    use = "train it further, with the classifier it has: proxylessnas finetune"
    return _train.report(args, result, document, use, data)


_TITLES = {
    "top1_held_out": ("top-1", "%"), "latency": ("predicted", "ms"), "measured_ms": ("measured", "ms"),
}  # fmt: skip


def report_seeds(args: argparse.Namespace, found: SeedResults) -> int:
    """Print mean and spread of what searches with several seeds came to; return the exit code."""
    if args.json and main_process():
        print_json({**found.to_dict(), "folder": str(found.folder), "signal": found.signal})
    elif found.finished and main_process():
        for seed, result in zip(found.seeds, found.results, strict=True):
            note(f"seed {seed}: {result.model}")
        rows = []
        for name, f in found.figures().items():
            title, unit = _TITLES.get(name, (name, UNITS.get(name, "")))
            spread = "" if f["std"] is None else f" +- {f['std']:.2g}"
            rows.append((title, f"{f['mean']:.4g}{spread} {unit} ({f['min']:.4g} to {f['max']:.4g})"))
        print(pairs(rows))
    return 0 if found.finished else 128 + (found.signal or 2)


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
    from ..search.ship import describe_int8

    return [*found, *describe_int8(result.to_dict())]


def report_dry_run(args: argparse.Namespace, found: DryRun) -> int:
    """Print what a search would take."""
    if not main_process():
        return 0
    if args.json:
        document = dataclasses.asdict(found)
        print_json({"pictures": document.pop("images"), **document})  # the key has been this since 0.1
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
        each = ["a model at the end of each epoch"] if found.arch_step_s is not None else []
        models = [f"{found.judgings:,} models at the end"] if found.judgings else []
        rows.append(("judging", f"{', '.join(each + models)}: {found.judging_s:.1f} s each"))
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

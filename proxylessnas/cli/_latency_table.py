"""``proxylessnas latency show``, ``predict`` and ``import``: tables that are there already."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError, LatencyKeyError
from ._arguments import (
    MODEL_HELP,
    SPACE_HELP,
    TABLE_HELP,
    add_imports,
    add_json,
    add_output,
    add_sizes,
    add_space,
    the_space,
)
from ._command import Command, UsageError
from ._latency_facts import (
    check_table_output,
    print_table_facts,
    show,
    show_breakdown,
    show_entries,
)
from ._options import add, add_options, settings_from, spelled
from ._output import ms, note, print_json, print_table, printable

if TYPE_CHECKING:
    from ..arch.arch import Arch
    from ..latency import LatencyTable, Predictor
    from ..latency.table import Breakdown

_FILL_HELP = "operations that the table lacks are predicted from those it has, and marked"


_IMPORT_NAMES = {"device_name": "--device", "batch_size": "--batch"}


class Show(Command):
    """Show what a table says: conditions, operations, how far to trust it, a model's parts.

    Show a latency table: what it was measured with, how well it predicted whole models, its operations, and
    the fastest and the slowest model of its space. With MODEL, what that model's predicted latency is made
    of.
    """

    name = "show"
    example = """\
  $ proxylessnas latency show pixel1
  pixel1
    conditions   TensorFlow Lite on Google Pixel 1, batch 1
    ...
    coverage     70 of 70 operations (100 %)
    fastest model  29.61 ms
                 k3e3 - - - | k3e3 - - - | k3e3 - - - | k3e3 - - - | k3e3 - - - | k3e3
    ...
  $ proxylessnas latency show table.json mine.txt
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "table TABLE", TABLE_HELP)
        add_imports(parser)
        add(parser, "model MODEL", MODEL_HELP, nargs="?")
        add_space(parser, required=False)
        add(parser, "--predict-missing", _FILL_HELP)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency import LatencyTable, space_keys
        from ..latency.predictor import filled
        from ..latency.table_facts import facts_of

        if args.model is not None and args.space is not None:
            raise UsageError("--space is for a table's summary; a model needs none")
        found = LatencyTable.load(args.table)
        if args.model is not None:
            arch = _chain(args.model)
            found, predictor = _filled(found, [arch], args)
            parts = found.explain(arch, resolution=args.image_size, num_classes=args.classes)
            if args.json:
                print_json({"table": args.table, **_model_facts(args.model, parts), "parts": _parts(parts)})
            else:
                show_breakdown(args.model, parts)
                _tell_error(predictor)
            return 0
        space = the_space(args) or found.space
        predictor = None
        if args.predict_missing:
            if space is None:
                raise UsageError("--predict-missing needs a space: --space says which")
            found, predictor = filled(found, space_keys(space))
        known = facts_of(found, space)
        if args.json:
            operations = [{"key": str(key), **entry.to_dict()} for key, entry in found.entries.items()]
            print_json({"table": args.table, **known, "operations": operations})
            return 0
        show(args.table, known, found.conditions.describe())
        print()
        show_entries(found)
        _tell_error(predictor)
        for problem in known["trust"]:
            note(f"a search would refuse this table: {problem}")
        return 0


class Predict(Command):
    """Predict models from a table.

    Predict the latency of models from a table: the sum of their operations. A model with an operation that
    the table lacks is an error that names it, unless --predict-missing allows a guess.
    """

    name = "predict"
    example = """\
  $ proxylessnas latency predict pixel1 proxyless_mobile --predict-missing
  model             predicted  guessed operations
  proxyless_mobile      88.04  3 of 23

  milliseconds a call; TensorFlow Lite on Google Pixel 1, batch 1
"""
    rest = "models"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "table TABLE", TABLE_HELP)
        add_imports(parser)
        add(parser, "models MODEL", MODEL_HELP, nargs="+")
        add_sizes(parser)
        add(parser, "--predict-missing", _FILL_HELP)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency import LatencyTable, doubts

        found = LatencyTable.load(args.table)
        nets = [(word, _chain(word)) for word in dict.fromkeys(args.models)]
        filled, predictor = _filled(found, (arch for _, arch in nets), args)
        rows: list[tuple[str, Breakdown]] = []
        for word, arch in nets:
            try:
                parts = filled.explain(arch, resolution=args.image_size, num_classes=args.classes)
            except (LatencyError, LatencyKeyError) as e:
                raise type(e)(f"{word}: {e}") from e
            rows.append((word, parts))
        if args.json:
            document = {"table": args.table, "nets": [_model_facts(word, parts) for word, parts in rows]}
            print_json({**document, "trust": doubts(found)})
            return 0
        cells = [("model", "predicted", "guessed operations")]
        for word, parts in rows:
            guessed = f"{parts.predicted} of {len(parts.parts)}" if parts.predicted else "-"
            cells.append((word, ms(parts.total_ms), guessed))
        if not any(parts.predicted for _, parts in rows):
            cells = [(*row[:2], "") for row in cells]
        print_table(cells, "<><")
        print(printable(f"\nmilliseconds a call; {found.conditions.describe()}"))
        _tell_error(predictor)
        for problem in doubts(found):
            note(f"this table is not to be trusted: {problem}")
        return 0


class Import(Command):
    """Make a table of latencies measured elsewhere: a kit's results, YAML, CSV or JSON.

    Make a table of latencies that were measured by another program or on another device: the results of a kit
    (`proxylessnas latency kit`), the YAML layout of the original code, a CSV file with the columns key and
    ms, s or us, or JSON.
    """

    name = "import"
    example = """\
  $ proxylessnas latency import mobile_trim.yaml --unit ms --device "Pixel 1" -o pixel.json
  $ proxylessnas latency import results.json --kit kit -o phone.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..latency.settings import ImportSettings

        add(parser, "file FILE", "a .yaml, .csv or .json file")
        add_imports(parser)
        add_output(parser, "where to write the table (.json)", required=True)
        add(parser, "--force", "replace a table that is there")
        add(parser, "--kit DIR", "FILE holds the results of this kit")
        add_options(parser, ImportSettings, names=_IMPORT_NAMES)
        add(parser, "--space S", f"that the table is for: {SPACE_HELP}")
        add_sizes(parser, " (of the space)")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency import ImportSettings, import_table, kit_table, read_results

        check_table_output(args.output, args.force)
        settings = settings_from(args, ImportSettings)
        space = the_space(args)
        if args.kit is not None:
            said = [name for name, value in {**vars(settings), "space": space}.items() if value is not None]
            if said:
                raise UsageError(
                    spelled(f"`{said[0]}` does not go with --kit, whose files say it", args.parser)
                )
            found = kit_table(read_results(args.kit, args.file))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the report has it, under trust
                found = import_table(args.file, settings, space=space)
        found.save(args.output)
        print_table_facts(args.output, found, args)
        return 0


def _chain(word: str) -> Arch:
    from ..arch.arch import Arch
    from ..models.resolve import resolve

    arch = resolve(word).arch
    if not isinstance(arch, Arch):
        raise LatencyError(f"{word} is no chain of blocks: a table cannot predict it; measure it instead")
    return arch


def _filled(
    found: LatencyTable, archs: Iterable[Arch], args: argparse.Namespace
) -> tuple[LatencyTable, Predictor | None]:
    """Return the table with predictions for what these models need, if that was asked for."""
    from ..latency import arch_keys
    from ..latency.predictor import filled

    sizes = {"resolution": args.image_size, "num_classes": args.classes}
    keys = (key for arch in archs for key in arch_keys(arch, **sizes))
    return filled(found, keys) if args.predict_missing else (found, None)


def _tell_error(predictor: Predictor | None) -> None:
    if predictor is not None:
        error = predictor.held_out_shapes or predictor.held_out
        size = "an unknown amount" if error is None else f"{error.rmspe_percent:.1f} %"
        note(
            f"guessed operations are off by {size}: root mean square error on operations of the table that "
            "were left out to find out"
        )


def _model_facts(word: str, parts: Breakdown) -> dict[str, Any]:
    return {
        "net": word,
        "predicted_ms": parts.total_ms,
        "operations": len(parts.parts),
        "guessed_operations": parts.predicted,
        "offset_ms": parts.offset_ms,
    }


def _parts(parts: Breakdown) -> list[dict[str, Any]]:
    return [{"key": str(key), "ms": value, "how": how} for key, value, how in parts.parts]

"""``proxylessnas latency show``, ``predict`` and ``import``: tables that are there already."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError, LatencyKeyError
from ..models.resolve import resolve
from ._command import UsageError, Verb
from ._latency import (
    MODEL_HELP,
    SPACE_HELP,
    TABLE_HELP,
    add_imports,
    add_sizes,
    add_space,
    check_output,
    import_modules,
    ms,
    read_table,
    the_space,
)
from ._latency_facts import facts, show, show_breakdown, show_entries
from ._options import MOST_IMAGES, MOST_THREADS, whole
from ._output import bold, note, print_json, printable, table

if TYPE_CHECKING:
    from ..arch.arch import Arch
    from ..latency import LatencyTable, Predictor
    from ..latency.table import Breakdown

_FILL_HELP = "operations that the table lacks are predicted from those it has, and marked"


class Show(Verb):
    """Prints a table, or what a model is made of."""

    name = "show"
    summary = "show what a table says: conditions, operations, how far to trust it, a model's parts"
    description = (
        "Show a latency table: what it was measured with, how well it predicted whole models, its operations, "
        "and the fastest and the slowest model of its space. With MODEL, what that model's predicted latency is "
        "made of."
    )
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
        """Declare the action's arguments."""
        parser.add_argument("table", metavar="TABLE", help=TABLE_HELP)
        add_imports(parser)
        parser.add_argument("net", metavar="MODEL", nargs="?", help=MODEL_HELP)
        add_space(parser, required=False)
        parser.add_argument("--predict-missing", action="store_true", help=_FILL_HELP)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Print it."""
        import_modules(args)
        if args.net is not None and args.space is not None:
            raise UsageError("--space is for a table's summary; a model needs none")
        found = read_table(args.table)
        if args.net is not None:
            arch = _chain(args.net)
            filled, predictor = _filled(found, [(args.net, arch)], args)
            parts = filled.explain(arch, resolution=args.image_size, num_classes=args.classes)
            if args.json:
                print_json({"table": args.table, **_model_facts(args.net, parts), "parts": _parts(parts)})
            else:
                show_breakdown(args.net, parts)
                _tell_error(predictor)
            return 0
        space = the_space(args) or found.space
        if args.predict_missing:
            if space is None:
                raise UsageError("--predict-missing needs a space: --space says which")
            found, predictor = _extended(found, list(_missing(found, space)))
        else:
            predictor = None
        known = facts(found, space)
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


class Predict(Verb):
    """Predicts models from a table."""

    name = "predict"
    summary = "predict models from a table"
    description = (
        "Predict the latency of models from a table: the sum of their operations. A model with an operation that "
        "the table lacks is an error that names it, unless --predict-missing allows a guess."
    )
    example = """\
  $ proxylessnas latency predict pixel1 proxyless_mobile --predict-missing
  model               predicted  guessed operations
  proxyless_mobile      88.04  3 of 23

  milliseconds a call; TensorFlow Lite on Google Pixel 1, batch 1
"""
    rest = "nets"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("table", metavar="TABLE", help=TABLE_HELP)
        add_imports(parser)
        parser.add_argument("nets", metavar="MODEL", nargs="+", help=MODEL_HELP)
        add_sizes(parser)
        parser.add_argument("--predict-missing", action="store_true", help=_FILL_HELP)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Predict and report."""
        from ..latency import doubts

        import_modules(args)
        found = read_table(args.table)
        nets = [(word, _chain(word)) for word in dict.fromkeys(args.nets)]
        filled, predictor = _filled(found, nets, args)
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
        cells = [("net", "predicted", "guessed operations")]
        for word, parts in rows:
            guessed = f"{parts.predicted} of {len(parts.parts)}" if parts.predicted else "-"
            cells.append((word, ms(parts.total_ms), guessed))
        if not any(parts.predicted for _, parts in rows):
            cells = [(*row[:2], "") for row in cells]
        head, _, body = table(cells, "<><").partition("\n")
        print(bold(head))
        print(printable(body))
        print(printable(f"\nmilliseconds a call; {found.conditions.describe()}"))
        _tell_error(predictor)
        for problem in doubts(found):
            note(f"this table is not to be trusted: {problem}")
        return 0


class Import(Verb):
    """Makes a table of figures measured elsewhere."""

    name = "import"
    summary = "make a table of latencies measured elsewhere: a kit's results, YAML, CSV or JSON"
    description = (
        "Make a table of latencies that were measured by another program or on another device: the results "
        "of a kit (`proxylessnas latency kit`), the YAML layout of the original code, a CSV file with the "
        "columns key and ms, s or us, or JSON."
    )
    example = """\
  $ proxylessnas latency import mobile_trim.yaml --unit ms --device "Pixel 1" -o pixel.json
  $ proxylessnas latency import results.json --kit kit -o phone.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("file", metavar="FILE", help="a .yaml, .csv or .json file")
        add_imports(parser)
        parser.add_argument(
            "-o", "--output", required=True, metavar="FILE", help="where to write the table (.json)"
        )
        parser.add_argument("--force", action="store_true", help="replace a table that is there")
        parser.add_argument("--kit", metavar="DIR", help="FILE holds the results of this kit")
        group = parser.add_argument_group("what FILE may not say itself")
        group.add_argument("--unit", choices=("ms", "s", "us"), help="of the figures")
        group.add_argument("--device", metavar="NAME", help="what it was measured on")
        group.add_argument("--runtime", metavar="NAME", help="the program that ran the operations")
        group.add_argument("--threads", type=whole(1, MOST_THREADS), metavar="N", help="on a CPU")
        group.add_argument(
            "--batch", type=whole(1, MOST_IMAGES), metavar="N", dest="batch_size", help="images a call"
        )
        group.add_argument("--statistic", choices=("median", "mean"), help="over the runs")
        group.add_argument("--source", metavar="TEXT", help="where the figures were published")
        group.add_argument("--space", metavar="S", help=f"that the table is for: {SPACE_HELP}")
        add_sizes(group, " (of the space)")
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Read, check and write it."""
        import_modules(args)
        check_table_output(args.output, args.force)
        names = ("unit", "runtime", "threads", "batch_size", "statistic", "source")
        given = {name: getattr(args, name) for name in names}
        given["device_name"] = args.device
        space = the_space(args)
        if args.kit is not None:
            said = [name for name, value in {**given, "space": space}.items() if value is not None]
            if said:
                option = {"batch_size": "batch", "device_name": "device"}.get(said[0], said[0])
                raise UsageError(f"--{option} does not go with --kit, whose files say it")
            found = _from_kit(args.kit, args.file)
        else:
            from ..latency import import_table

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the report has it, under trust
                found = import_table(args.file, space=space, **given)
        found.save(args.output)
        report_table(args.output, found, args)
        return 0


def check_table_output(file: str, force: bool) -> None:
    """Check that a table can be written there, and that none is there unless it may be replaced."""
    check_output(file, "-o", ".json")
    if Path(file).exists() and not force:
        raise LatencyError(f"{file} is there already: --force replaces it")


def report_table(file: str, found: LatencyTable, args: argparse.Namespace, *, doubts: bool = True) -> None:
    """Print what is in a table that was written, with reasons to doubt it unless the caller tells them."""
    known = facts(found, found.space)
    if args.json:
        print_json({"table": str(file), **known})
        return
    show(str(file), known, found.conditions.describe())
    for problem in known["trust"] if doubts else []:
        note(f"a search would refuse this table: {problem}")


def _from_kit(kit: str, results: str) -> LatencyTable:
    from ..latency import read_results
    from ..latency.kit.results import kit_table

    return kit_table(read_results(kit, results))


def _chain(word: str) -> Arch:
    from ..arch.arch import Arch

    arch = resolve(word).arch
    if not isinstance(arch, Arch):
        raise LatencyError(f"{word} is no chain of blocks: a table cannot predict it; measure it instead")
    return arch


def _missing(found: LatencyTable, space: Any) -> list[Any]:
    return list(found.coverage(space)[2])


def _filled(
    found: LatencyTable, nets: list[tuple[str, Arch]], args: argparse.Namespace
) -> tuple[LatencyTable, Predictor | None]:
    """Return the table with predictions for what these models need, if that was asked for."""
    if not args.predict_missing:
        return found, None
    from ..latency import arch_keys

    needed = [
        key
        for _, arch in nets
        for key in arch_keys(arch, resolution=args.image_size, num_classes=args.classes)
        if key not in found.entries
    ]
    return _extended(found, list(dict.fromkeys(needed)))


def _extended(found: LatencyTable, keys: list[Any]) -> tuple[LatencyTable, Predictor | None]:
    if not keys:
        return found, None
    from ..latency import Predictor

    predictor = Predictor.fit(found)
    return found.extended(keys, predictor), predictor


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


SHOW, PREDICT, IMPORT = Show(), Predict(), Import()

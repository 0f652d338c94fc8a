"""``proxylessnas verify``: are the weights here the published ones, bit for bit?"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ProxylessError, WeightsCorruptError, WeightsNotFoundError, one_line
from ._arguments import add_json
from ._command import Command, UsageError
from ._model import named
from ._options import add
from ._output import error, plural, print_json


class Verify(Command):
    """Check the digests of weights that are here, or of a file.

    Check weights against the published digests: of models in the cache or the package, or of any file, which
    is recognised by its digest. Nothing is downloaded. With --all, models that are not in the cache are
    listed but no failure.
    """

    name = "verify"
    order = 40
    example = """\
  $ proxylessnas verify proxyless_cpu ~/Downloads/proxyless-w0.25-r112_imagenet.pth
  sound  proxyless_cpu           /home/me/.cache/torch/hub/proxylessnas/proxyless_cpu-373f6da5.pth
  sound  proxyless_w025_r112     /home/me/Downloads/proxyless-w0.25-r112_imagenet.pth
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "models NAME|FILE", "a model in the cache, or a file of weights", nargs="*")
        add(parser, "--all", "all models in the cache and the package")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..weights.registry import read_manifest

        if bool(args.models) == args.all:
            raise UsageError("give models or files, or --all" + (" (not both)" if args.all else ""))
        results = [self._check(word) for word in (list(read_manifest()) if args.all else args.models)]
        if args.json:
            print_json({"weights": results})
        bad = 0
        for result in results:
            failed = result["state"] != "sound" and not (args.all and result["state"] == "absent")
            bad += failed
            if failed:
                error(result["problem"])
            elif not args.json:
                where = result.get("path", "(not in the cache)")
                print(one_line(f"{result['state']:6}  {result['net']:22}  {where}"))
        if bad and len(results) > 1:
            error(f"{bad} of {plural(len(results), 'set')} of weights failed")
        return 1 if bad else 0

    @staticmethod
    def _check(word: str) -> dict[str, Any]:
        from ..weights.registry import find_by_digest

        model: str | None = None
        try:
            found = named(word)
            record = found.weights if found.path is None else find_by_digest(found.path)
            if found.path is None and record is not None:
                model = record.name
                return {"net": model, "state": "sound", "path": str(record.verify())}
            if record is None:
                raise WeightsCorruptError(
                    f"{word}: not a published file, or damaged (its digest is not known)"
                )
            return {"net": record.name, "state": "sound", "path": word}
        except WeightsNotFoundError as e:
            return {"net": model, "state": "absent", "problem": str(e)}
        except ProxylessError as e:
            return {"net": model, "state": "bad", "problem": str(e)}


COMMAND = Verify()

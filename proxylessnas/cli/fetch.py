"""``proxylessnas fetch``: bring weights to this machine, or into a folder for another one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ProxylessError, one_line
from ._arguments import add_json
from ._command import Command, UsageError
from ._options import add
from ._output import error, megabytes, plural, print_json


class Fetch(Command):
    """Download published weights into the cache, or into a folder.

    Download the weights of models and check their digests; what is there already, in the cache or in the
    package, is only checked. With --to, the folder can be carried to a machine without network and used there
    as PROXYLESSNAS_CACHE (weights that come with the package are copied too).
    """

    name = "fetch"
    order = 30
    example = """\
  $ proxylessnas fetch --all --to /media/stick/weights
  ...
  proxyless_w025_r112  /media/stick/weights/proxyless_w025_r112-d4bfc7a6.pth  2.4 MB
  ...
  there: export PROXYLESSNAS_CACHE=/media/stick/weights PROXYLESSNAS_OFFLINE=1
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "models NAME", "model whose weights are wanted", nargs="*")
        add(parser, "--all", "the weights of all models")
        add(parser, "--to DIR", "put them into this folder instead of the cache")
        add(parser, "--quiet", "no progress bar")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..weights.registry import get_weights, read_manifest

        if bool(args.models) == args.all:
            raise UsageError("give the names of models, or --all" + (" (not both)" if args.all else ""))
        wanted = list(read_manifest().values()) if args.all else [get_weights(name) for name in args.models]
        wanted = list({weights.name: weights for weights in wanted}.values())
        folder = Path(args.to) if args.to else None
        results: list[dict[str, Any]] = []
        for weights in wanted:
            try:
                path = weights.fetch(progress=not args.quiet, directory=folder)
            except ProxylessError as e:
                results.append({"net": weights.name, "error": str(e)})
                error(f"{weights.name}: {e}")
                continue
            size = path.stat().st_size
            results.append({"net": weights.name, "path": str(path), "size": size})
            if not args.json:
                print(one_line(f"{weights.name}  {path}  {megabytes(size)}"))
        failed = sum("error" in result for result in results)
        if args.json:
            print_json({"weights": results, "failed": failed})
        elif folder is not None and failed < len(results):
            print(one_line(f"there: export PROXYLESSNAS_CACHE={folder.absolute()} PROXYLESSNAS_OFFLINE=1"))
        if failed and len(results) > 1:
            error(f"{failed} of {plural(len(results), 'model')} could not be fetched")
        return 1 if failed else 0


COMMAND = Fetch()

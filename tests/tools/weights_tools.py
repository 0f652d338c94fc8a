"""Weights for tests that are about something else than fetching them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path


def stand_in_weights(names: Sequence[str] | None = None) -> None:
    """Put random weights into the cache where the published ones of these models (all by default) would be.

    The published files are not part of the repository, and their digests cannot be imitated. But after a
    verified load, later ones read a copy with its own digest beside it, and that is what is written here.
    """
    from safetensors.torch import save

    import proxylessnas
    from proxylessnas.utils.paths import cache_dir
    from proxylessnas.weights.file_spec import short_digest

    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for name in proxylessnas.list_models(pretrained=True) if names is None else names:
        weights = proxylessnas.get_weights(name)
        if weights.bundled:
            continue  # real ones are there already
        data = save(proxylessnas.create_model(weights.arch).state_dict())
        file = folder / f"{weights.name}-{short_digest(weights)}.safetensors"
        file.write_bytes(data)
        digest = f"{hashlib.sha256(data).hexdigest()}  {file.name}\n"
        file.with_name(f"{file.name}.sha256").write_text(digest, encoding="utf-8")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve_real_weights(folder: Path) -> Iterator[str]:
    """Serve the files of a folder on this machine; yield the URL for `PROXYLESSNAS_WEIGHTS_URL`."""
    import proxylessnas

    with tempfile.TemporaryDirectory() as served:
        for name in proxylessnas.list_models(pretrained=True):
            weights = proxylessnas.get_weights(name)
            hosted = folder / (weights.sources or ("",))[0].rpartition("/")[2]
            if hosted.is_file():
                shutil.copy(hosted, Path(served) / weights.filename)
        handler = functools.partial(_Quiet, directory=served)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

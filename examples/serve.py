"""Serve a model over HTTP: an image in, its five most probable classes out, with a page to drop images on.

    python examples/serve.py model.onnx  # of `proxylessnas export`; then open http://127.0.0.1:8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/classify

Needs `pip install 'proxylessnas[serve]'`, not torch. /health says that it is up. No TLS, no login.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

try:
    import serve_uploads as uploads
    import uvicorn
    from onnx_model import Model
    from serve_budgets import MAX_BYTES_AT_ONCE, MAX_PIXELS_AT_ONCE, Budget, Memory
    from serve_limits import SETTINGS
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
except ModuleNotFoundError as e:
    sys.exit(f"error: {e.name} is missing: pip install 'proxylessnas[serve]'")


def make_app(model: Model, at_once: int) -> Starlette:
    """Return the service: its event loop receives and sends, threads look at the images."""
    memory, requests, pixels = Memory(MAX_BYTES_AT_ONCE), Budget(at_once), Budget(MAX_PIXELS_AT_ONCE)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "net": model.name, **uploads.LIMITS})

    async def classify(request: Request) -> JSONResponse:
        with ExitStack() as held:  # of the memory: also while it waits for its turn
            body = await uploads.received(request, lambda n: held.enter_context(memory.take(n)))
            async with requests.take(1):
                image = await run_in_threadpool(uploads.opened, body)
                async with pixels.take(image.width * image.height):
                    found = await run_in_threadpool(lambda: model.classify(uploads.unpacked(image)))
        return JSONResponse({**found, "width": image.width, "height": image.height})

    page, post = Route("/", uploads.page), Route("/classify", classify, methods=["POST"])
    refused = {HTTPException: lambda _, e: JSONResponse({"error": e.detail}, e.status_code, e.headers)}
    return Starlette(routes=[page, post, Route("/health", health)], exception_handlers=refused)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a model over HTTP, with a page to drop images on.")
    parser.add_argument("model", type=Path, help="made by `proxylessnas export MODEL FILE.onnx`")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="of one request")
    parser.add_argument("--at-once", type=int, default=8, help="requests at a time; others wait a little")
    args = parser.parse_args()
    try:
        model = Model(args.model, args.threads)
    except Exception as e:  # noqa: BLE001 - onnxruntime has dozens of errors, the file may lack anything
        parser.error(f"{args.model} cannot be served: {type(e).__name__}: {e}")
    try:
        listener = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as e:
        sys.exit(f"error: cannot serve at {args.host}, port {args.port}: {e}")
    server = uvicorn.Server(uvicorn.Config(make_app(model, args.at_once), **SETTINGS))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # uvicorn raises the signal again when it is done
    print(f"{model.name} is served at http://{args.host}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])
    print("stopped", flush=True)


if __name__ == "__main__":
    main()

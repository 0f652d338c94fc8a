"""Serve a model over HTTP: an image in, its five most probable classes out, with a page to drop images on.

    pip install 'proxylessnas[serve]'
    proxylessnas export proxyless_cifar10_demo model.onnx
    python examples/serve.py model.onnx          # then open http://127.0.0.1:8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/classify

GET / is the page, GET /health says that the service is up, POST /classify takes an image as its body.
Refused with {"error": ...}: 400 damaged, 404 no such address, 405 no such method, 408 too slow, 413 too large,
415 no image, 503 too many at once. There is neither TLS nor a login: those belong in front of it.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import Any

try:
    import uvicorn
    from onnx_model import Model
    from PIL import Image
    from serve_limits import KINDS, MAX_BYTES, MAX_PIXELS_AT_ONCE, Budget, Connection, opened, received
    from serve_limits import refusing_damage
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse
    from starlette.routing import Route
except ModuleNotFoundError as e:
    sys.exit(f"error: {e.name} is missing: pip install 'proxylessnas[serve]'")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def make_app(model: Model, at_once: int) -> Starlette:
    """Return the service: the event loop receives and sends, threads look at images."""
    types = [f"image/{kind}" for kind in KINDS]
    requests, pixels = Budget(at_once), Budget(MAX_PIXELS_AT_ONCE)

    async def page(request: Request) -> FileResponse:
        return FileResponse(Path(__file__).with_name("serve_page.html"))

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "net": model.name, "types": types, "max_bytes": MAX_BYTES})

    async def classify(request: Request) -> JSONResponse:
        if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() not in types:
            raise HTTPException(415, f"send an image ({', '.join(KINDS)}) as the body, with its Content-Type")
        async with requests.take(1):
            image = await run_in_threadpool(opened, await received(request))
            async with pixels.take(image.width * image.height):
                return JSONResponse(await run_in_threadpool(answer, image))

    def answer(image: Image.Image) -> dict[str, Any]:
        with refusing_damage():
            image.load()
        return {**model.classify(image), "width": image.width, "height": image.height}

    async def refused(request: Request, e: HTTPException) -> JSONResponse:
        return JSONResponse({"error": e.detail}, e.status_code, e.headers)

    routes = [Route("/", page), Route("/health", health), Route("/classify", classify, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a model over HTTP, with a page to drop images on.")
    parser.add_argument("model", type=Path, help="made by `proxylessnas export MODEL FILE.onnx`")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="of one request")
    parser.add_argument("--at-once", type=int, default=8, help="requests at a time; more wait, then are turned away")
    args = parser.parse_args()
    try:
        model = Model(args.model, args.threads)
    except Exception as e:  # noqa: BLE001 - onnxruntime has dozens of errors, the file may lack anything
        parser.error(f"{args.model} cannot be served: {type(e).__name__}: {e}")
    try:
        listener = socket.create_server((args.host, args.port))
    except (OSError, OverflowError) as e:
        sys.exit(f"error: cannot serve at {args.host}, port {args.port}: {e}")
    limits = {"limit_concurrency": 500, "timeout_graceful_shutdown": 30, "http": Connection, "ws": "none"}
    quiet = {"access_log": False, "log_level": "warning", "server_header": False, "lifespan": "off"}
    app = make_app(model, args.at_once)
    server = uvicorn.Server(uvicorn.Config(app, headers=list(HEADERS.items()), **limits, **quiet))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # uvicorn's own way ends with the signal, not with 0
    print(f"{model.name} is served at http://{args.host}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])
    print("stopped", flush=True)


if __name__ == "__main__":
    main()

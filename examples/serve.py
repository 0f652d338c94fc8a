"""Serve a net over HTTP: a photo in, its five most probable classes out, with a page to drop photos on.

    proxylessnas export proxyless_cifar10_demo net.onnx
    python examples/serve.py net.onnx            # then open http://127.0.0.1:8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/classify

Needs onnxruntime and pillow, not torch: the file holds classes and preprocessing. serve_http.py has the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from serve_http import serve


class Net:
    """An exported net, with what its file says of it."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = self.session.get_modelmeta().custom_metadata_map
        self.name = about.get("name", path.stem)
        self.categories, self.preprocessing = (json.loads(about[k]) for k in ("categories", "preprocessing"))
        self.input = self.session.get_inputs()[0]
        self.classify(Image.new("RGB", (64, 64)))  # whatever is wrong with the file shows here

    def classify(self, picture: Image.Image, top: int = 5) -> dict[str, Any]:
        """Return the most probable classes of a picture, and what it took, as JSON values."""
        begin = time.perf_counter()
        logits = self.session.run(None, {self.input.name: self.pixels(picture)})[0][0]
        odds = np.exp(logits - logits.max())
        best = np.argsort(-logits)[:top]
        classes = [{"name": self.categories[i], "probability": float(odds[i] / odds.sum())} for i in best]
        return {"classes": classes, "milliseconds": round((time.perf_counter() - begin) * 1e3, 2)}

    def pixels(self, picture: Image.Image) -> np.ndarray[Any, Any]:
        """Return the net's input, [1, 3, H, W]: upright RGB, resized, cropped and normalised."""
        rgb = ImageOps.exif_transpose(picture)
        if rgb.has_transparency_data:
            rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb.convert("RGBA"))
        rgb = rgb.convert("RGB")
        if self.input.type == "tensor(uint8)":  # exported with --uint8-input: the net does the rest
            return np.asarray(rgb).transpose(2, 0, 1)[None]
        p, side, sides = self.preprocessing, self.preprocessing["input_size"], np.array(rgb.size)
        resized = (p["resize"] * sides / sides.min()).astype(int)
        # Only what the centre crop of the resized picture shows is resized: so a mere strip costs nothing.
        start = np.round((resized - side) / 2) * sides / resized
        end = np.minimum(start + side * sides / resized, sides)
        kernel = Image.Resampling[p["interpolation"].upper()]
        x = np.asarray(rgb.resize((side, side), kernel, (*start, *end)), np.float32) / 255
        return ((x - np.float32(p["mean"])) / np.float32(p["std"])).transpose(2, 0, 1)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a net over HTTP, with a page to drop photos on.")
    parser.add_argument("net", type=Path, help="made by `proxylessnas export NET FILE.onnx`")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=1, help="of one request")
    parser.add_argument("--at-once", type=int, default=8, help="requests at a time; more are turned away")
    args = parser.parse_args()
    try:
        net = Net(args.net, args.threads)
    except Exception as e:  # noqa: BLE001 - onnxruntime has dozens of errors, the file may lack anything
        parser.error(f"{args.net} cannot be served: {type(e).__name__}: {e}")
    serve(net.classify, net.name, args.host, args.port, args.at_once)


if __name__ == "__main__":
    main()

"""Run an exported .onnx file on images: ONNX Runtime and Pillow, while the file holds all that is needed.

model = Model(Path("model.onnx"), threads=1)
model.classify(Image.open("photo.jpg"))["classes"]
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Model:
    """An exported model, with what its file says of it; threads may share it."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = self.session.get_modelmeta().custom_metadata_map
        self.name = about.get("name", path.stem)
        self.categories, self.preprocessing = (json.loads(about[k]) for k in ("categories", "preprocessing"))
        self.input = self.session.get_inputs()[0]
        self.classify(Image.new("RGB", (64, 64)))  # whatever is wrong with the file shows here

    def classify(self, image: Image.Image, top: int = 5) -> dict[str, Any]:
        """Return the most probable classes of an image, and what it took, as JSON values."""
        begin = time.perf_counter()
        logits = self.session.run(None, {self.input.name: self.pixels(image)})[0][0]
        odds = np.exp(logits - logits.max())
        best = np.argsort(-logits)[:top]
        classes = [{"name": self.categories[i], "probability": float(odds[i] / odds.sum())} for i in best]
        return {"classes": classes, "milliseconds": round((time.perf_counter() - begin) * 1e3, 2)}

    def pixels(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """Return the model's input, [1, 3, H, W]: upright RGB, resized, cropped and normalised."""
        rgb = ImageOps.exif_transpose(image)
        if rgb.has_transparency_data:
            rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb.convert("RGBA"))
        rgb = rgb.convert("RGB")
        if self.input.type == "tensor(uint8)":  # exported with --uint8-input: the model does the rest
            return np.asarray(rgb).transpose(2, 0, 1)[None]
        p, side, sides = self.preprocessing, self.preprocessing["input_size"], np.array(rgb.size)
        resized = (p["resize"] * sides / sides.min()).astype(int)
        # Only what the centre crop of the resized image shows is resized: so a mere strip costs nothing.
        start = np.round((resized - side) / 2) * sides / resized
        end = np.minimum(start + side * sides / resized, sides)
        kernel = Image.Resampling[p["interpolation"].upper()]
        x = np.asarray(rgb.resize((side, side), kernel, (*start, *end)), np.float32) / 255
        return ((x - np.float32(p["mean"])) / np.float32(p["std"])).transpose(2, 0, 1)[None]

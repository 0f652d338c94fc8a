"""``.onnx``: ONNX, proven in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..errors import ExportError, LatencyError, first_line
from ..latency.onnx_net import (
    INPUT,
    OPSET,
    OUTPUT,
    Proto,
    has_registered,
    import_onnx,
    is_plain,
    model_onnx,
    traced_onnx,
)
from ..latency.runtimes.onnxruntime_ import RUNTIME, library
from .formats import ExportOptions, Program, refuse
from .subject import Subject

#: Names of the file's input and output.
IMAGES, LOGITS = "images", "logits"


class OnnxFormat:
    """See :class:`~proxylessnas.deploy.formats.Format`."""

    name = "ONNX"
    suffix = ".onnx"

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        return {"onnx": str(import_onnx().__version__), **RUNTIME.versions()}

    def check(self, subject: Subject, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        refuse(self, options, "batch_size", "uint8_input", "opset")
        self.versions()
        latest = int(import_onnx().defs.onnx_opset_version())
        if options.opset is not None and not OPSET <= options.opset <= latest:
            raise ExportError(
                f"opset {options.opset} cannot be written: {OPSET} to {latest} can, with the installed onnx"
            )
        if options.uint8_input:
            if subject.preprocessing is None:
                raise ExportError(
                    f"{subject.name}: --uint8-input (uint8_input=True in Python) puts the preprocessing into "
                    "the file, but the net's is not known: in Python set "
                    "model.preprocessing, which save_weights keeps"
                )
            if subject.input_size[0] != 3:
                raise ExportError(
                    f"{subject.name}: --uint8-input (uint8_input=True in Python) takes RGB pictures; the net "
                    f"takes {subject.input_size[0]} channels"
                )

    def write(self, subject: Subject, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        onnx = import_onnx()
        proto = net_proto(subject, options.batch_size, options.opset or OPSET)
        if options.uint8_input:
            from .onnx_pixels import add_pixels

            assert subject.preprocessing is not None  # says check()
            add_pixels(proto, subject.preprocessing, IMAGES)
        proto.producer_name, proto.producer_version = "proxylessnas", __version__
        onnx.helper.set_model_props(proto, subject.metadata())
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as e:  # its errors share no base class over the versions
            raise ExportError(f"{subject.name}: the ONNX checker refuses the graph ({first_line(e)})") from e
        path.write_bytes(proto.SerializeToString())
        return [path]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in ONNX Runtime, on the CPU."""
        ort = library()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads or 0
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its exceptions share no base class
            raise ExportError(f"{path}: ONNX Runtime cannot load it ({first_line(e)})") from e
        name = session.get_inputs()[0].name

        def run(x: Tensor) -> Tensor:
            try:
                found: Any = session.run(None, {name: x.numpy()})[0]
            except Exception as e:
                raise ExportError(f"{path}: ONNX Runtime cannot run {list(x.shape)} ({first_line(e)})") from e
            return torch.from_numpy(found)

        return run


def net_proto(subject: Subject, batch_size: int | None, opset: int = OPSET) -> Proto:
    """Return a net as an ONNX model with input "images" and output "logits".

    Args:
        subject: the net.
        batch_size: pictures a call; None leaves it open.
        opset: version of ONNX's operators.

    Raises:
        ExportError: the net has an operation that cannot be exported.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    # The exporter takes a batch of one for a constant.
    example = torch.zeros(batch_size or 2, *subject.input_size)
    model, open_batch = subject.model, batch_size is None
    try:
        if is_plain(model) and not has_registered(model):
            proto = model_onnx(model, example, opset=opset, open_batch=open_batch)
        else:
            proto = traced_onnx(model, example, opset, open_batch)
    except LatencyError as e:
        raise ExportError(f"{subject.name}: {e}") from e
    return _renamed(proto, {INPUT: IMAGES, OUTPUT: LOGITS})


def take_bytes(path: Path, subject: Subject) -> None:
    """Put a net's preprocessing into a file that was written without it, as ``uint8_input`` does.

    Args:
        path: of the file, which is changed.
        subject: the net, whose preprocessing is known.
    """
    from .onnx_pixels import add_pixels

    onnx = import_onnx()
    proto = onnx.load(str(path))
    assert subject.preprocessing is not None  # says check()
    add_pixels(proto, subject.preprocessing, IMAGES)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _renamed(proto: Proto, names: dict[str, str]) -> Proto:
    """Give the values of a graph other names."""
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    return proto


FORMAT = OnnxFormat()

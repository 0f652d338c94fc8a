"""Runtime "torch": PyTorch as it is, one kernel after the other."""

from __future__ import annotations

from .base import ModelSpec, Runtime, Session
from .settings import DEVICES, FLOATS, Settings


class TorchRuntime(Runtime):
    """PyTorch, eager."""

    name = "torch"
    suffixes: tuple[str, ...] = (".pt2", ".pt")
    dtypes = dict.fromkeys(DEVICES, FLOATS)
    has_parts = True

    def versions(self) -> dict[str, str]:
        """Return torch's version, with those of CUDA and cuDNN where a GPU can be used."""
        from .torch_sessions import torch_versions

        return torch_versions()

    def device_name(self, settings: Settings) -> str | None:
        """Return the GPU's name; None for the CPU."""
        from .torch_sessions import cuda_name

        return cuda_name() if settings.device == "cuda" else None

    def _load(self, spec: ModelSpec, settings: Settings) -> Session:
        from .modules import build_model
        from .torch_sessions import check_device, file_session, parts_of, session_for

        check_device(settings)
        if spec.kind == "file":
            return file_session(spec, settings)
        model, x = build_model(spec, settings)
        return session_for(model, x, settings, parts_of(model, spec))


RUNTIME = TorchRuntime()

"""The zoo's models as tables (ProxylessNAS, ICLR 2019; the authors' released configurations, MIT licence).

Widths are written out because no single multiplier gives them: ``mobile`` has a first stage of 32 where the
search space has 24, and ``mobile_14`` has the blocks of ``mobile`` with widths of its own. One model is this
project's own: ``proxyless_cifar10_demo``, small enough to come with its weights.
"""

from __future__ import annotations

import difflib
import re

from ..errors import UnknownModelError
from .arch import Arch
from .blocks import Stage
from .tree import TreeArch

GPU = Arch("proxyless_gpu", stem=40, first=24, last=1728, stages=(
    Stage( 32, 2, "k5e3 -    -    -   "), Stage( 56, 2, "k7e3 -    -    k3e3"), Stage(112, 2, "k7e6 -    -    k5e3"),
    Stage(128, 1, "k5e6 -    k3e3 k5e3"), Stage(256, 2, "k7e6 k7e6 k7e6 k5e6"), Stage(432, 1, "k7e6")))  # fmt: skip

CPU = Arch("proxyless_cpu", stem=40, first=24, last=1432, stages=(
    Stage( 32, 2, "k3e6 k3e3 k3e3 k3e3"), Stage( 48, 2, "k3e6 k3e3 k3e3 k5e3"), Stage( 88, 2, "k3e6 -    -    k3e3"),
    Stage(104, 1, "k5e6 k3e3 k3e3 k3e3"), Stage(216, 2, "k5e6 k5e3 k5e3 k3e3"), Stage(360, 1, "k5e6")))  # fmt: skip

MOBILE = Arch("proxyless_mobile", stem=32, first=16, last=1280, stages=(
    Stage( 32, 2, "k5e3 k3e3 -    -   "), Stage( 40, 2, "k7e3 k3e3 k5e3 k5e3"), Stage( 80, 2, "k7e6 k5e3 k5e3 k5e3"),
    Stage( 96, 1, "k5e6 k5e3 k5e3 k5e3"), Stage(192, 2, "k7e6 k7e6 k7e3 k7e3"), Stage(320, 1, "k7e6")))  # fmt: skip

MOBILE_14 = Arch("proxyless_mobile_14", stem=48, first=24, last=1792, stages=(
    Stage( 40, 2, "k5e3 k3e3 -    -   "), Stage( 56, 2, "k7e3 k3e3 k5e3 k5e3"), Stage(112, 2, "k7e6 k5e3 k5e3 k5e3"),
    Stage(136, 1, "k5e6 k5e3 k5e3 k5e3"), Stage(256, 2, "k7e6 k7e6 k7e3 k7e3"), Stage(448, 1, "k7e6")))  # fmt: skip

# The two tiny models are the backbones of the authors' gaze estimation demo. In the smaller one the fourth
# stage starts with a block of equal shapes and no shortcut, hence the "!".
W025_R112 = Arch("proxyless_w025_r112", stem=8, first=8, last=320, resolution=112, stages=(
    Stage(  8, 2, "k5e3 k3e3 -    -   "), Stage( 16, 2, "k7e3 k3e3 k5e3 k5e3"), Stage( 24, 2, "k7e6 k5e3 k5e3 k5e3"),
    Stage( 24, 1, "k5e6! k5e3 k5e3 k5e3"), Stage(48, 2, "k7e6 k7e6 k7e3 k7e3"), Stage( 80, 1, "k7e6")))  # fmt: skip

W03_R176 = Arch("proxyless_w03_r176", stem=16, first=8, last=384, resolution=176, stages=(
    Stage( 16, 2, "k5e3 k3e3 -    -   "), Stage( 16, 2, "k7e3 k3e3 k5e3 k5e3"), Stage( 24, 2, "k7e6 k5e3 k5e3 k5e3"),
    Stage( 32, 1, "k5e6 k5e3 k5e3 k5e3"), Stage( 64, 2, "k7e6 k7e6 k7e3 k7e3"), Stage( 96, 1, "k7e6")),
    official_keys=("mid_channels", "act_func", "use_se", "ws_eps"))  # fmt: skip

CIFAR = TreeArch("proxyless_cifar", start=16, alpha=84, cells="""
    7mdi7m5d5577 aiaa3im7didd 7i3a5a3d3ad5 a55d3dd773i7 ai5dd57m7aim 7m7m35a7d3ii dmim777753ii dd5757m5aa37
    7d5miimm3aad 5i3i373i5757 7a7535diadd3 5da533a577d3 mm737d3ma57i 37md7d5di373 dam3ddai5i5i 5id5aad55573
    7555d3idm737 mdii3i7m57id dm5aa75a73am 7di7i7dm37m5 mda3idmmm5ia da73a33a7idd dmma7i7ddiam 75m7mimiadm7
    i5a5m5dd7adm 3iadddd3aaa3 d7m7immm555d 3773aim737mm 7577a333ida3 5iaia5a73aam i3adi7ia7mid 7m5i7dm7dm77
    37m3i353i35i d7d3d73i3dmi mii55a37aiad 7m75da737555 aaaada7i5iia m7ia5iiiai7i d37mi5ai3ima 77a5a3mia3mm
    iia7i7ima5a7 di5im575d7id mmiaamdai53i 77577ad73m7a dadmd37didm5 adam3mdi7dai mma7335daii3 5d7dimm735mi
    773mdam5mm5m m5iad3537377 i3a577i7773a 5m53ai55am5i 3md3mai7md33 773m5i5mm337
    """)  # fmt: skip

# Ours: for images of 32 pixels, so the stem and the first two stages keep the resolution.
CIFAR10_DEMO = Arch("proxyless_cifar10_demo", stem=16, first=16, last=640, stem_stride=1, num_classes=10, resolution=32,
    stages=(Stage(24, 1, "k3e2"), Stage(48, 2, "k3e3 k3e3 k3e3 k3e3"), Stage(112, 2, "k3e6 k3e6 k3e6 k3e6 k3e6")))  # fmt: skip

PUBLISHED: dict[str, Arch | TreeArch] = {
    arch.name: arch for arch in (GPU, CPU, MOBILE, MOBILE_14, W025_R112, W03_R176, CIFAR10_DEMO, CIFAR)
}
MODEL_NAMES: tuple[str, ...] = tuple(PUBLISHED)


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def normalise_name(name: str) -> str:
    """Return the zoo name that ``name`` stands for: case, ``-``, ``_``, ``.`` and blanks do not count.

    >>> normalise_name("Proxyless-Mobile14")
    'proxyless_mobile_14'

    Raises:
        UnknownModelError: no such model; the message lists the nearest names, or all.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"a model's name is a str, not {type(name).__name__}")
    by_squeezed = {_squeeze(known): known for known in MODEL_NAMES}
    key = _squeeze(name)
    for candidate in (key, "proxyless" + key):
        if candidate in by_squeezed:
            return by_squeezed[candidate]
    near = difflib.get_close_matches(key, by_squeezed, n=2, cutoff=0.7)
    hint = (
        f"did you mean {' or '.join(by_squeezed[n] for n in near)}?"
        if near
        else f"known are {', '.join(MODEL_NAMES)}"
    )
    raise UnknownModelError(f"unknown model {name[:80]!r}: {hint}")

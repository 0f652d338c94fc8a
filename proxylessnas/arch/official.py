"""The original code's JSON description of a model (``net.config``), read strictly and written exactly.

Every key is checked: a layer with a setting that the models of this package do not have is an error that
names it, because ignoring it would build another model without a word. Keys that may be left out are read as
the original code's defaults. Tree models are in :mod:`~proxylessnas.arch.official_tree`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArchError
from ..utils.checks import is_number, show
from ..utils.files import read_text
from . import ops
from .blocks import MAX_WIDTH, Block, Stage, check_int
from .ops import ZERO, parse_token
from .ops.spec import ACTIVATIONS, RELU6, OpSpec, SESpec

if TYPE_CHECKING:
    from .arch import Arch
    from .tree import TreeArch

    Readers = Mapping[str, Callable[[Mapping[str, Any], str], Arch | TreeArch]]

MAX_BYTES = 16_000_000
_COMMON = {"use_bn": False, "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act"}
#: Keys that later versions of the original code add to every block, with the values of most of these models.
_LATER_BLOCK: dict[str, Any] = {"mid_channels": None, "act_func": "relu6", "use_se": False}
_SHAPE = ("in_channels", "out_channels", "stride")
_LATER_BN: dict[str, Any] = {"ws_eps": None}


def read_official(source: Mapping[str, Any] | str | Path, readers: Readers) -> Arch | TreeArch:
    """Read a description with the reader of its kind (see :meth:`Arch.from_official`).

    Args:
        source: the parsed JSON, or the path of a file.
        readers: by the name at the top level; called with the description and a name for the architecture.

    Raises:
        ArchError: the file is missing, too large or no JSON, or it describes no such model.
    """
    if isinstance(source, str) and source.lstrip().startswith("{"):
        raise ArchError("this is JSON text, not a path: give from_official(json.loads(text))")
    if not isinstance(source, (str, Path)):
        return _read(source, "net", readers)
    text = read_text(source, "an architecture", ArchError, MAX_BYTES)
    try:
        data = json.loads(text)
    except RecursionError as e:
        raise ArchError(f"{source}: nested too deeply") from e
    except ValueError as e:
        raise ArchError(f"{source}: not a JSON file ({e})") from e
    try:
        return _read(data, Path(source).stem, readers)
    except ArchError as e:
        raise ArchError(f"{source}: {e}") from e


def _read(data: Any, name: str, readers: Readers) -> Arch | TreeArch:
    data = expect_object(data, "top level")
    for kind, read in readers.items():
        if data.get("name") == kind:
            return read(data, name)
    found = f"'name' is {show(data['name'])}" if "name" in data else "'name' is missing"
    raise ArchError(f"{found}; expected {' or '.join(readers)}")


def expect_object(value: Any, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, else raise ArchError."""
    if not isinstance(value, Mapping):
        raise ArchError(f"{where}: expected an object, found {show(value)}")
    return value


def same(a: Any, b: Any) -> bool:
    """Compare two JSON scalars, telling ``1`` from ``true``."""
    return type(a) is type(b) and a == b if isinstance(a, bool) or isinstance(b, bool) else bool(a == b)


def check_layer(spec: Any, where: str, wanted: Mapping[str, Any], free: tuple[str, ...]) -> Mapping[str, Any]:
    """Check a layer against the one that is wanted, but for the keys ``free``, which must be there.

    Raises:
        ArchError: naming the place, the key and the two values.
    """
    spec = expect_object(spec, where)
    if spec.get("name") != wanted["name"]:
        raise ArchError(f"{where}: expected a {wanted['name']}, found {show(spec.get('name'))}")
    for key in free:
        if key not in spec:
            raise ArchError(f"{where}: {key!r} is missing")
    for key, value in spec.items():
        if key in free:
            continue
        if key not in wanted:
            raise ArchError(f"{where}: unknown key {show(key)}")
        if not same(value, wanted[key]):
            raise ArchError(f"{where}: {key} is {show(value)}; these models have {show(wanted[key])}")
    return spec


def plain_layer(name: str, channels: int, **settings: Any) -> dict[str, Any]:
    """Return the JSON of a layer without weights, an identity or a pooling."""
    return {"name": name, "in_channels": channels, "out_channels": channels, **_COMMON, **settings}


def conv_layer(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, **settings: Any
) -> dict[str, Any]:
    """Return the JSON of a convolution with BatchNorm and activation."""
    return {
        "name": "ConvLayer", "kernel_size": kernel, "stride": stride, "dilation": 1, "groups": 1,
        "bias": False, "has_shuffle": False, "in_channels": in_channels, "out_channels": out_channels,
        **_COMMON, "use_bn": True, "act_func": "relu6", **settings,
    }  # fmt: skip


def linear_layer(in_features: int, out_features: int, dropout: float, ops_order: str) -> dict[str, Any]:
    """Return the JSON of a classifier."""
    return {
        "name": "LinearLayer", "in_features": in_features, "out_features": out_features, "bias": True,
        **_COMMON, "dropout_rate": dropout or 0, "ops_order": ops_order,
    }  # fmt: skip


def check_linear(spec: Any, ops_order: str) -> Mapping[str, Any]:
    """Check the JSON of a classifier, of any dropout, and return it."""
    dropout = ("dropout_rate",) * ("dropout_rate" in expect_object(spec, "classifier"))
    wanted = linear_layer(0, 0, 0, ops_order)
    return check_layer(spec, "classifier", wanted, ("in_features", "out_features", *dropout))


def _op(block: Block, later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a block's operation; ``later`` has keys of later versions.

    ``use_se`` alone does not say how narrow a squeeze-and-excite is: our own ``se_channels`` does.
    """
    op = block.op
    if block.kind == "zero":
        return {"name": "ZeroLayer", "stride": block.stride}
    shape = {"in_channels": block.in_channels, "out_channels": block.out_channels, "stride": block.stride}
    if not isinstance(op, OpSpec):
        return {**shape, "name": op.name}
    values = dict(zip(op.official_keys, astuple(op), strict=True))
    numbers = {key: value for key, value in values.items() if not isinstance(value, bool)}
    flags = {key: value for key, value in values.items() if value is True}
    found: dict[str, Any] = {**shape, "name": op.official, **numbers, **later, **flags}
    for layer in block.layers or ():
        if isinstance(layer, SESpec):
            found["se_channels"] = layer.squeezed
    return found


def _block(block: Block, later: Mapping[str, Any]) -> dict[str, Any]:
    shortcut = plain_layer("IdentityLayer", block.in_channels) if block.shortcut else None
    op = _op(block, later)
    return {"name": "MobileInvertedResidualBlock", "mobile_inverted_conv": op, "shortcut": shortcut}


def mbconv_to_official(arch: Arch) -> dict[str, Any]:
    """Return the JSON description of a chain of blocks (see :meth:`Arch.to_official`)."""
    later_block = {key: value for key, value in _LATER_BLOCK.items() if key in arch.official_keys}
    if arch.act != RELU6:
        later_block["act_func"] = arch.act
    later_bn = {key: value for key, value in _LATER_BN.items() if key in arch.official_keys}
    blocks = arch.blocks
    data: dict[str, Any] = {
        "name": "ProxylessNASNets",
        "bn": {"momentum": arch.bn_momentum, "eps": arch.bn_eps, **later_bn},
        "first_conv": conv_layer(arch.in_channels, arch.stem, 3, arch.stem_stride, act_func=arch.act),
        "feature_mix_layer": conv_layer(blocks[-1].out_channels, arch.last, 1, act_func=arch.act),
        "classifier": linear_layer(arch.last, arch.num_classes, arch.dropout, "weight_bn_act"),
        "blocks": [_block(block, later_block) for block in blocks],
    }
    if arch.resolution is not None:
        data["resolution"] = arch.resolution
    return data


def _check_channels(layer: Mapping[str, Any], where: str, in_channels: int) -> None:
    if layer["in_channels"] != in_channels:
        raise ArchError(
            f"{where}: in_channels is {show(layer['in_channels'])}, but {in_channels} channels arrive"
        )
    check_int(f"{where}: out_channels", layer["out_channels"], 1, MAX_WIDTH)


def _read_token(
    op: Mapping[str, Any], where: str, width: int, act: str, seen: set[str]
) -> tuple[str, int, int]:
    """Return a block's token, output channels and stride."""
    name = op.get("name")
    if name == "ZeroLayer":
        check_layer(op, where, {"name": name}, ("stride",))
        if op["stride"] != 1:
            raise ArchError(f"{where}: a ZeroLayer has stride 1 here, not {show(op['stride'])}")
        return ZERO, width, 1
    spec = next((spec for spec in ops.SPECS if spec.official == name), None)
    if spec is not None:
        token = _read_spec(spec, op, where, width, act)
        seen.update(key for key, usual in _LATER_BLOCK.items() if key in op and same(op[key], usual))
    elif not isinstance(name, str):
        raise ArchError(f"{where}: expected a layer, found {show(name)}")
    elif name not in ops.registered():
        known = ", ".join([*(spec.official for spec in ops.SPECS), "ZeroLayer"])
        known += " and operations of modules (--import MODULE)"
        raise ArchError(f"{where}: {show(name)} is not a known layer; known are {known}")
    else:
        check_layer(op, where, {"name": name}, _SHAPE)
        token = name
    _check_channels(op, where, width)
    check_int(f"{where}: stride", op["stride"], 1, 2)
    return token, op["out_channels"], op["stride"]


def _read_spec(spec: type[OpSpec], op: Mapping[str, Any], where: str, width: int, act: str) -> str:
    """Return the token of an operation of the package whose input has ``width`` channels."""
    token = ""
    for key, (letter, _, kind) in zip(spec.official_keys, spec.spelled(), strict=True):
        value = op.get(key, False)
        if kind == "bool":
            token += letter * (value is True)
        elif key not in op:
            raise ArchError(f"{where}: {key!r} is missing")
        elif kind == "int":
            check_int(f"{where}: {key}", value, 1, 99)
            token += f"{letter}{value}"
        elif not is_number(value, 1, 100) or value == 100:
            raise ArchError(f"{where}: {key} must be a number from 1 to 100, not {show(value)}")
        elif float(f"{value:.3f}") != value:
            raise ArchError(f"{where}: {key} {show(value)} has more than three decimals")
        else:
            token += f"{letter}{value:.3f}".rstrip("0").rstrip(".")
    block = Block(parse_token(token)[0], token, 0, width, width, 1, False)
    wanted = _op(block, {**_LATER_BLOCK, "act_func": act})
    if act != RELU6 and "act_func" not in op:
        raise ArchError(f"{where}: 'act_func' is missing, which stands for {RELU6}; the stem has {act}")
    if "se_channels" in wanted and "se_channels" not in op:
        raise ArchError(f"{where}: use_se is true, but 'se_channels' does not say how wide")
    check_layer(op, where, wanted, _SHAPE)
    return token


def _read_blocks(blocks: Any, stem: int, act: str, seen: set[str]) -> tuple[int, list[Stage]]:
    """Return ``first`` and the stages. A stage begins where a block changes the shape or has no shortcut."""
    if not isinstance(blocks, list) or not blocks:
        raise ArchError(f"blocks: expected a list of blocks, found {show(blocks)}")
    first, width = 0, stem
    rows: list[tuple[int, int, list[str]]] = []
    for i, spec in enumerate(blocks):
        where = f"blocks[{i}]"
        spec = check_layer(
            spec, where, {"name": "MobileInvertedResidualBlock"}, ("mobile_inverted_conv", "shortcut")
        )
        op = expect_object(spec["mobile_inverted_conv"], f"{where}.mobile_inverted_conv")
        token, out, stride = _read_token(op, f"{where}.mobile_inverted_conv", width, act, seen)
        same_shape = stride == 1 and out == width
        if spec["shortcut"] is None:
            token += "!" if same_shape else ""
        else:
            identity = plain_layer("IdentityLayer", width)
            where += ".shortcut"
            shortcut = check_layer(spec["shortcut"], where, identity, ("in_channels", "out_channels"))
            if not same_shape or shortcut["in_channels"] != width or shortcut["out_channels"] != width:
                there = f"{width} channels to {out}, stride {stride}"
                raise ArchError(f"{where}: an identity cannot join {there}")
        if i == 0 and token.removesuffix("!") == "k3e1" and stride == 1 and spec["shortcut"] is None:
            first = out
        elif rows and same_shape and spec["shortcut"] is not None:
            rows[-1][2].append(token)
        else:
            rows.append((out, stride, [token]))
        width = out
    return first, [Stage(out, stride, " ".join(tokens)) for out, stride, tokens in rows]


def read_mbconv(build: type[Arch], data: Mapping[str, Any], name: str) -> Arch:
    """Build the architecture that a ``ProxylessNASNets`` description stands for.

    Raises:
        ArchError: it describes a layer or a setting that these models do not have.
    """
    known = ("name", "bn", "first_conv", "feature_mix_layer", "classifier", "blocks", "resolution")
    for key in data:
        if key not in known:
            raise ArchError(f"unknown key {show(key)}")
    for key in ("first_conv", "feature_mix_layer", "classifier", "blocks"):
        if key not in data:
            raise ArchError(f"{key!r} is missing")
    seen: set[str] = set()
    bn = expect_object(data.get("bn", {"momentum": 0.1, "eps": 1e-3}), "bn")
    for key, value in bn.items():
        if key not in ("momentum", "eps") and not (key in _LATER_BN and value is None):
            raise ArchError(f"bn: unknown setting {show(key)}: {show(value)}")
    seen.update(key for key in _LATER_BN if key in bn)
    given = expect_object(data["first_conv"], "first_conv").get("act_func", RELU6)
    act = given if given in ACTIVATIONS else RELU6  # of any other, the stem is refused
    layer = conv_layer(0, 0, 3, act_func=act)
    stem = check_layer(data["first_conv"], "first_conv", layer, ("in_channels", "out_channels", "stride"))
    check_int("first_conv: out_channels", stem["out_channels"], 1, MAX_WIDTH)
    first, stages = _read_blocks(data["blocks"], stem["out_channels"], act, seen)
    width = stages[-1].width if stages else first
    where = "feature_mix_layer"
    layer = conv_layer(0, 0, 1, act_func=act)
    mix = check_layer(data[where], where, layer, ("in_channels", "out_channels"))
    if mix.get("act_func", RELU6) != act:
        raise ArchError(f"{where}: 'act_func' is missing, which stands for {RELU6}; the stem has {act}")
    _check_channels(mix, where, width)
    classifier = check_linear(data["classifier"], "weight_bn_act")
    if classifier["in_features"] != mix["out_channels"]:
        raise ArchError(
            f"classifier: in_features is {show(classifier['in_features'])}, "
            f"but {mix['out_channels']} features arrive"
        )
    order = [*_LATER_BLOCK, *_LATER_BN]
    return build(
        name=name,
        stem=stem["out_channels"],
        first=first,
        last=mix["out_channels"],
        stages=tuple(stages),
        num_classes=classifier["out_features"],
        in_channels=stem["in_channels"],
        stem_stride=stem["stride"],
        bn_eps=bn.get("eps", 1e-3),
        bn_momentum=bn.get("momentum", 0.1),
        dropout=classifier.get("dropout_rate", 0.0),
        resolution=data.get("resolution"),
        official_keys=tuple(key for key in order if key in seen),
        act=act,
    )

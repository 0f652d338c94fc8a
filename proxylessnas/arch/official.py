"""The original code's JSON description of a net (``net.config``), read strictly and written exactly.

Every key is checked: a layer with a setting that the nets of this package do not have is an error that names
it, because ignoring it would build another net without a word. Keys that may be left out are read as the
original code's defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArchError, shown
from ..utils.files import read_text
from .arch import Arch, Block, Stage, check_int, custom_op
from .tree import TreeArch

MAX_BYTES = 16_000_000
_COMMON = {"use_bn": False, "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act"}
_CONV = {
    "kernel_size": 3,
    "stride": 1,
    "dilation": 1,
    "groups": 1,
    "bias": False,
    "has_shuffle": False,
    **_COMMON,
    "use_bn": True,
    "act_func": "relu6",
}
#: Keys that later versions of the original code add to every MBConv, with the only values these nets have.
_LATER_MBCONV: dict[str, Any] = {"mid_channels": None, "act_func": "relu6", "use_se": False}
_LATER_BN: dict[str, Any] = {"ws_eps": None}


def read_json(path: str | Path) -> Any:
    """Return the parsed JSON of a file.

    Raises:
        ArchError: the file is missing, too large or no JSON.
    """
    text = read_text(path, "an architecture", ArchError, MAX_BYTES)
    try:
        return json.loads(text)
    except RecursionError as e:
        raise ArchError(f"{path}: nested too deeply") from e
    except ValueError as e:
        raise ArchError(f"{path}: not a JSON file ({e})") from e


def expect_object(value: Any, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, else raise ArchError."""
    if not isinstance(value, Mapping):
        raise ArchError(f"{where}: expected an object, found {short(value)}")
    return value


def short(value: Any) -> str:
    """Return a bounded form of a JSON value for messages."""
    if not isinstance(value, (str, int, float, bool, type(None))):
        return type(value).__name__
    try:
        return (
            shown(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else json.dumps(value)[:60]
        )
    except ValueError:
        return type(value).__name__


def same(a: Any, b: Any) -> bool:
    """Compare two JSON scalars, telling ``1`` from ``true``."""
    return type(a) is type(b) and a == b if isinstance(a, bool) or isinstance(b, bool) else bool(a == b)


def check_layer(
    spec: Any, where: str, name: str, fixed: Mapping[str, Any], free: tuple[str, ...]
) -> Mapping[str, Any]:
    """Check that a layer is a ``name`` whose settings are ``fixed``; keys in ``free`` may have any value.

    Raises:
        ArchError: naming the place, the key and the two values.
    """
    spec = expect_object(spec, where)
    if spec.get("name") != name:
        raise ArchError(f"{where}: expected a {name}, found {short(spec.get('name'))}")
    for key in free:
        if key not in spec:
            raise ArchError(f"{where}: {key!r} is missing")
    for key, value in spec.items():
        if key == "name" or key in free:
            continue
        if key not in fixed:
            raise ArchError(f"{where}: unknown key {short(key)}")
        if not same(value, fixed[key]):
            raise ArchError(f"{where}: {key} is {short(value)}; these nets have {short(fixed[key])}")
    return spec


def linear_layer(in_features: int, out_features: int, dropout: float, ops_order: str) -> dict[str, Any]:
    """Return the JSON of a classifier."""
    return {
        "name": "LinearLayer",
        "in_features": in_features,
        "out_features": out_features,
        "bias": True,
        **_COMMON,
        "dropout_rate": dropout or 0,
        "ops_order": ops_order,
    }


def check_linear(spec: Any, ops_order: str) -> Mapping[str, Any]:
    """Check the JSON of a classifier and return it."""
    fixed = {"bias": True, **_COMMON, "ops_order": ops_order}
    del fixed["dropout_rate"]
    free = ("in_features", "out_features") + (
        ("dropout_rate",) if "dropout_rate" in expect_object(spec, "classifier") else ()
    )
    return check_layer(spec, "classifier", "LinearLayer", fixed, free)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> dict[str, Any]:
    return {
        "name": "ConvLayer",
        **_CONV,
        "kernel_size": kernel,
        "stride": stride,
        "in_channels": in_channels,
        "out_channels": out_channels,
    }


def _identity(channels: int) -> dict[str, Any]:
    return {"name": "IdentityLayer", "in_channels": channels, "out_channels": channels, **_COMMON}


def _block(block: Block, later: Mapping[str, Any]) -> dict[str, Any]:
    op: dict[str, Any]
    if block.kind == "zero":
        op = {"name": "ZeroLayer", "stride": block.stride}
    else:
        op = {"in_channels": block.in_channels, "out_channels": block.out_channels, "stride": block.stride}
        if block.kind == "custom":
            op["name"] = block.token.removesuffix("!")
        else:
            op |= {
                "name": "MBInvertedConvLayer",
                "kernel_size": block.kernel,
                "expand_ratio": block.expand,
                **later,
            }
    shortcut = _identity(block.in_channels) if block.shortcut else None
    return {"name": "MobileInvertedResidualBlock", "mobile_inverted_conv": op, "shortcut": shortcut}


def mbconv_to_official(arch: Arch) -> dict[str, Any]:
    """Return the JSON description of an MBConv net (see :meth:`Arch.to_official`)."""
    later_block = {key: value for key, value in _LATER_MBCONV.items() if key in arch.official_keys}
    later_bn = {key: value for key, value in _LATER_BN.items() if key in arch.official_keys}
    blocks = arch.blocks
    data: dict[str, Any] = {
        "name": "ProxylessNASNets",
        "bn": {"momentum": arch.bn_momentum, "eps": arch.bn_eps, **later_bn},
        "first_conv": _conv(arch.in_channels, arch.stem, 3, arch.stem_stride),
        "feature_mix_layer": _conv(blocks[-1].out_channels, arch.last, 1, 1),
        "classifier": linear_layer(arch.last, arch.num_classes, arch.dropout, "weight_bn_act"),
        "blocks": [_block(block, later_block) for block in blocks],
    }
    if arch.resolution is not None:
        data["resolution"] = arch.resolution
    return data


def _read_conv(
    spec: Any, where: str, kernel: int, in_channels: int | None, free: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    fixed = {key: value for key, value in {**_CONV, "kernel_size": kernel}.items() if key not in free}
    spec = check_layer(spec, where, "ConvLayer", fixed, ("in_channels", "out_channels", *free))
    if in_channels is not None and spec["in_channels"] != in_channels:
        raise ArchError(
            f"{where}: in_channels is {short(spec['in_channels'])}, but {in_channels} channels arrive"
        )
    check_int(f"{where}: out_channels", spec["out_channels"], 1, 65_536)
    return spec


def _read_token(op: Mapping[str, Any], where: str, width: int, seen: set[str]) -> tuple[str, int, int]:
    """Return a block's token, output channels and stride."""
    name = op.get("name")
    if name == "ZeroLayer":
        check_layer(op, where, "ZeroLayer", {"stride": 1}, ("stride",))
        if op["stride"] != 1:
            raise ArchError(f"{where}: a ZeroLayer has stride 1 here, not {short(op['stride'])}")
        return "-", width, 1
    free: tuple[str, ...] = ("in_channels", "out_channels", "stride")
    if name == "MBInvertedConvLayer":
        free += ("kernel_size", "expand_ratio")
        seen.update(key for key in _LATER_MBCONV if key in op)
        check_layer(op, where, "MBInvertedConvLayer", _LATER_MBCONV, free)
        kernel, ratio = op["kernel_size"], op["expand_ratio"]
        check_int(f"{where}: kernel_size", kernel, 1, 99)
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1 <= ratio < 100:
            raise ArchError(f"{where}: expand_ratio must be a number from 1 to 100, not {short(ratio)}")
        token = f"k{kernel}e{ratio:.3f}".rstrip("0").rstrip(".")
        if float(token.partition("e")[2]) != ratio:
            raise ArchError(f"{where}: expand_ratio {short(ratio)} has more than three decimals")
    else:
        if not isinstance(name, str):
            raise ArchError(f"{where}: expected a layer, found {short(name)}")
        try:
            custom_op(name)
        except KeyError as e:
            known = "MBInvertedConvLayer, ZeroLayer and operations of modules (--import MODULE)"
            raise ArchError(f"{where}: {short(name)} is not a known layer; known are {known}") from e
        check_layer(op, where, name, {}, free)
        token = name
    if op["in_channels"] != width:
        raise ArchError(f"{where}: in_channels is {short(op['in_channels'])}, but {width} channels arrive")
    check_int(f"{where}: out_channels", op["out_channels"], 1, 65_536)
    check_int(f"{where}: stride", op["stride"], 1, 2)
    return token, op["out_channels"], op["stride"]


def _read_blocks(blocks: Any, stem: int, seen: set[str]) -> tuple[int, list[Stage]]:
    """Return ``first`` and the stages. A stage begins where a block changes the shape or has no shortcut."""
    if not isinstance(blocks, list) or not blocks:
        raise ArchError(f"blocks: expected a list of blocks, found {short(blocks)}")
    first, width, stages = 0, stem, []
    current: tuple[int, int, list[str]] | None = None
    for i, spec in enumerate(blocks):
        where = f"blocks[{i}]"
        spec = check_layer(
            spec, where, "MobileInvertedResidualBlock", {}, ("mobile_inverted_conv", "shortcut")
        )
        op = expect_object(spec["mobile_inverted_conv"], f"{where}.mobile_inverted_conv")
        token, out, stride = _read_token(op, f"{where}.mobile_inverted_conv", width, seen)
        same_shape = stride == 1 and out == width
        if spec["shortcut"] is None:
            token += "!" if same_shape else ""
        else:
            shortcut = check_layer(
                spec["shortcut"],
                f"{where}.shortcut",
                "IdentityLayer",
                _COMMON,
                ("in_channels", "out_channels"),
            )
            if not same_shape or shortcut["in_channels"] != width or shortcut["out_channels"] != width:
                raise ArchError(
                    f"{where}.shortcut: an identity cannot join {width} channels to {out}, stride {stride}"
                )
        if i == 0 and token.removesuffix("!") == "k3e1" and stride == 1 and spec["shortcut"] is None:
            first = out
        elif current is not None and same_shape and spec["shortcut"] is not None:
            current[2].append(token)
        else:
            if current is not None:
                stages.append(Stage(current[0], current[1], " ".join(current[2])))
            current = (out, stride, [token])
        width = out
    if current is not None:
        stages.append(Stage(current[0], current[1], " ".join(current[2])))
    return first, stages


def _read_mbconv(data: Mapping[str, Any], name: str) -> Arch:
    known = ("name", "bn", "first_conv", "feature_mix_layer", "classifier", "blocks", "resolution")
    for key in data:
        if key not in known:
            raise ArchError(f"unknown key {short(key)}")
    for key in ("first_conv", "feature_mix_layer", "classifier", "blocks"):
        if key not in data:
            raise ArchError(f"{key!r} is missing")
    seen: set[str] = set()
    bn = expect_object(data.get("bn", {"momentum": 0.1, "eps": 1e-3}), "bn")
    for key, value in bn.items():
        if key not in ("momentum", "eps") and not (key in _LATER_BN and value is None):
            raise ArchError(f"bn: unknown setting {short(key)}: {short(value)}")
    seen.update(key for key in _LATER_BN if key in bn)
    stem = _read_conv(data["first_conv"], "first_conv", 3, None, ("stride",))
    first, stages = _read_blocks(data["blocks"], stem["out_channels"], seen)
    width = stages[-1].width if stages else first
    mix = _read_conv(data["feature_mix_layer"], "feature_mix_layer", 1, width)
    classifier = check_linear(data["classifier"], "weight_bn_act")
    if classifier["in_features"] != mix["out_channels"]:
        raise ArchError(
            f"classifier: in_features is {short(classifier['in_features'])}, "
            f"but {mix['out_channels']} features arrive"
        )
    order = [*_LATER_MBCONV, *_LATER_BN]
    return Arch(
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
    )


def from_official(source: Mapping[str, Any] | str | Path) -> Arch | TreeArch:
    """Read the original code's JSON (see :meth:`Arch.from_official`)."""
    where, name = "", "net"
    if isinstance(source, str) and source.lstrip().startswith("{"):
        raise ArchError("this is JSON text, not a path: give from_official(json.loads(text))")
    if isinstance(source, (str, Path)):
        where, name = f"{source}: ", Path(source).stem
        data = read_json(source)
    else:
        data = source
    try:
        data = expect_object(data, "top level")
        if data.get("name") == "ProxylessNASNets":
            return _read_mbconv(data, name)
        if data.get("name") == "PyramidTreeNet":
            from .official_tree import read_tree

            return read_tree(data, name)
        found = f"'name' is {short(data['name'])}" if "name" in data else "'name' is missing"
        raise ArchError(f"{found}; expected ProxylessNASNets or PyramidTreeNet")
    except ArchError as e:
        if not where:
            raise
        raise ArchError(where + str(e)) from e

"""An independent way to run a model: interpret the original JSON description with functional calls and
original tensor names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def _bn(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], False, 0.0, eps)


def _act(x: Tensor, act: str | None) -> Tensor:
    return {None: lambda v: v, "relu": F.relu, "relu6": F.relu6}[act](x)


def _weight(spec: dict[str, Any], state: State, name: str, x: Tensor) -> Tensor:
    kind = spec["name"]
    if kind == "IdentityLayer":
        return x
    if kind == "PoolingLayer":
        padding = spec["kernel_size"] // 2 if spec["stride"] == 1 else 0
        if spec["pool_type"] == "max":
            return F.max_pool2d(x, spec["kernel_size"], spec["stride"], padding)
        return F.avg_pool2d(x, spec["kernel_size"], spec["stride"], padding, count_include_pad=False)
    k, s, d = spec["kernel_size"], spec["stride"], spec["dilation"]
    if kind == "DepthConvLayer":
        x = F.conv2d(x, state[f"{name}.depth_conv.weight"], None, s, k // 2 * d, d, x.shape[1])
        return F.conv2d(x, state[f"{name}.point_conv.weight"])
    x = F.conv2d(x, state[f"{name}.conv.weight"], None, s, k // 2 * d, d, spec["groups"])
    if spec["has_shuffle"] and spec["groups"] > 1:
        x = F.channel_shuffle(x, spec["groups"])
    return x


def layer(spec: dict[str, Any], state: State, name: str, x: Tensor, eps: float) -> Tensor:
    for op in spec["ops_order"].split("_"):
        if op == "weight":
            x = _weight(spec, state, name, x)
        elif op == "bn" and spec["use_bn"]:
            x = _bn(state, f"{name}.bn", x, eps)
        elif op == "act":
            x = _act(x, spec["act_func"])
    return x


def _conv_bn_act(
    state: State, name: str, x: Tensor, eps: float, stride: int, groups: int, act: bool
) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
    x = _bn(state, f"{name}.bn", x, eps)
    return F.relu6(x) if act else x


def _mbconv(spec: dict[str, Any], state: State, name: str, x: Tensor, eps: float) -> Tensor:
    if spec["expand_ratio"] > 1:
        x = _conv_bn_act(state, f"{name}.inverted_bottleneck", x, eps, 1, 1, True)
    x = _conv_bn_act(state, f"{name}.depth_conv", x, eps, spec["stride"], x.shape[1], True)
    return _conv_bn_act(state, f"{name}.point_linear", x, eps, 1, 1, False)


def _tree(spec: dict[str, Any], state: State, name: str, x: Tensor, eps: float) -> Tensor:
    count = len(spec["edges"])
    inputs = list(x.chunk(count, 1)) if spec["split_type"] == "split" else [x] * count
    outputs = []
    for i, (edge, child) in enumerate(zip(spec["edges"], spec["child_nodes"], strict=True)):
        y = kept = layer(edge, state, f"{name}.edges.{i}", inputs[i], eps)
        if child is not None:
            y = _tree(child, state, f"{name}.child_nodes.{i}", y, eps)
        if spec["has_branch_bn"]:
            y = _bn(state, f"{name}.branch_bns.{i}", y, eps) + kept
        outputs.append(y)
    return sum(outputs[1:], outputs[0])


def run(description: dict[str, Any], state: State, x: Tensor) -> Tensor:
    """Return the logits of ``x`` for a model described by the original JSON, in evaluation mode."""
    if description["name"] == "PyramidTreeNet":
        eps = 1e-5
        for i, block in enumerate(description["blocks"]):
            name = f"blocks.{i}"
            if block["name"] == "TransitionBlock":
                for j, spec in enumerate(block["layers"]):
                    x = layer(spec, state, f"{name}.layers.{j}", x, eps)
                continue
            shortcut = layer(block["shortcut"], state, f"{name}.shortcut", x, eps)
            x = layer(block["in_bottle"], state, f"{name}.in_bottle", x, eps)
            x = _tree(block["cell"], state, f"{name}.cell", x, eps)
            x = layer(block["out_bottle"], state, f"{name}.out_bottle", x, eps)
            x = _bn(state, f"{name}.final_bn", x, eps)
            padding = x.new_zeros(x.shape[0], x.shape[1] - shortcut.shape[1], *x.shape[2:])
            x = x + torch.cat([shortcut, padding], 1)
        x = x.flatten(1)
    else:
        eps = description["bn"]["eps"]
        x = layer(description["first_conv"], state, "first_conv", x, eps)
        for i, block in enumerate(description["blocks"]):
            spec = block["mobile_inverted_conv"]
            if spec["name"] == "ZeroLayer":
                continue
            y = _mbconv(spec, state, f"blocks.{i}.mobile_inverted_conv", x, eps)
            x = y if block["shortcut"] is None else x + y
        x = layer(description["feature_mix_layer"], state, "feature_mix_layer", x, eps)
        x = x.mean((2, 3))
    return F.linear(x, state["classifier.linear.weight"], state["classifier.linear.bias"])

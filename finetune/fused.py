"""Layers of a frozen model with a LoRA adapter, each as one step of autograd, for training on a CPU.

PEFT lifts the input of every adapted layer to float32, because its weights are, multiplies twice, scales, adds and
rounds back; upstream's norms take ten steps of autograd each. Here a frozen linear layer with its adapter is one
function and a norm another, the backward pass written out: the products run in the base's own type, as under autocast,
from adapter weights that stay float32 and whose gradients are float32. Less is computed, and less is kept for the
backward pass: no input of a layer is kept twice, none in float32.

What is not exactly that shape is left alone, and a layer that stops being so (an adapter is switched off, merged or
joined by a second one) goes back to PEFT's own forward by itself.
"""

import types
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable

_NORMS = {
    "transformers.models.llama.modeling_llama.LlamaRMSNorm", "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm",
}  # fmt: skip
"""By name: to import Qwen3's module costs a Llama's start a tenth of a second."""


def fuse_layers(model: torch.nn.Module) -> None:
    """Give the adapted linear layers and the norms in `model` (a PeftModel on a CPU, not under DeepSpeed, whose hooks
    gather a layer's weights when the layer itself is called) the forward described above."""
    for module in model.modules():
        if type(module) is Linear:
            module.forward = types.MethodType(_linear, module)
        elif f"{type(module).__module__}.{type(module).__qualname__}" in _NORMS:
            module.forward = types.MethodType(_norm, module)


def _linear(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    name = None if args or kwargs else _only_adapter(layer, x)
    if name is None:
        result: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return result
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _Adapted.apply(x, layer.base_layer.weight, a, b, layer.scaling[name])


def _only_adapter(layer: Any, x: torch.Tensor) -> str | None:
    """The adapter of `layer` if all that it does to `x` is x W' + s x A' B', with W frozen and in the type of x."""
    base, names = layer.base_layer, layer.active_adapters
    if layer.disable_adapters or layer.merged_adapters or len(names) != 1 or type(base) is not torch.nn.Linear:
        return None
    if torch.is_autocast_enabled(x.device.type):
        return None
    name: str = names[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    if base.bias is not None or base.weight.requires_grad or base.weight.dtype != x.dtype:
        return None
    dropout = layer.lora_dropout[name]
    return name if isinstance(dropout, torch.nn.Identity) or dropout.p == 0 else None


class _Adapted(torch.autograd.Function):
    """x W' + s x A' B' for x (..., in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.size(-1))
        down, up = a.to(x.dtype), (b * scaling).to(x.dtype)
        inner = rows @ down.T
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scaling, ctx.types = scaling, (a.dtype, b.dtype)
        return (rows @ weight.T).addmm_(inner, up.T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, weight, down, up, inner = ctx.saved_tensors
        wants_x, _, wants_a, wants_b, _ = ctx.needs_input_grad
        back = gradient.reshape(-1, gradient.size(-1))
        x = a = b = None
        if wants_b:
            b = (back.T @ inner).to(ctx.types[1]) * ctx.scaling
        if wants_x or wants_a:
            lifted = back @ up
            a = (lifted.T @ rows).to(ctx.types[0]) if wants_a else None
            if wants_x:
                x = (back @ weight).addmm_(lifted, down).view(*gradient.shape[:-1], -1)
        return x, None, a, b, None


def _norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.weight.requires_grad or layer.weight.dtype != x.dtype:
        result: torch.Tensor = type(layer).forward(layer, x)
        return result
    return _RootMeanSquare.apply(x, layer.weight, layer.variance_epsilon)


class _RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) in float32, rounded to the type of x, times the frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.to(torch.float32, copy=True)
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        unit = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(unit, inverse, weight)
        return weight * unit

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        unit, inverse, weight = ctx.saved_tensors
        back, wide = (gradient * weight).float(), unit.float()
        along = (back * wide).mean(-1, keepdim=True)
        return torch.addcmul(back, wide, along, value=-1).mul_(inverse).to(gradient.dtype), None, None

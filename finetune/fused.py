"""Layers of a frozen model with a LoRA adapter, each as one step of autograd, for training on a CPU.

PEFT lifts the input of every adapted layer to float32, because its weights are, multiplies twice, scales, adds and
rounds back; upstream's norms take ten steps of autograd each. Here a frozen linear layer with its adapter is one
function and a norm another, the backward pass written out: the products run in the base's own type, as under autocast,
from adapter weights that stay float32 and whose gradients are float32. Less is computed, and less is kept for the
backward pass: no input of a layer is kept twice, none in float32. Layers that read the same input (query, key and
value; gate and up) are one function together: one product with all their A, one gradient of the input.

What is not exactly that shape is left alone, and a layer that stops being so (an adapter is switched off, merged or
joined by a second one) goes back to PEFT's own forward by itself.
"""

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def fuse_layers(model: torch.nn.Module) -> None:
    """Give the adapted linear layers, attentions, MLPs and norms in `model` (a PeftModel on a CPU, not under DeepSpeed,
    whose hooks gather a layer's weights when the layer itself is called) the forward described above."""
    for module in model.modules():
        if type(module) is Linear:
            module.forward = types.MethodType(_linear, module)
        elif type(module).__module__ in _FAMILIES:
            for ending, forward in _FORWARDS.items():
                if type(module).__name__.endswith(ending):
                    module.forward = types.MethodType(forward, module)


def _linear(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    made = None if args or kwargs else _adapted([layer], x)
    if made is None:
        result: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return result
    return made[0]


def _mlp(layer: Any, x: torch.Tensor) -> torch.Tensor:
    made = _together([layer.gate_proj, layer.up_proj], x)
    result: torch.Tensor
    if made is None:
        result = type(layer).forward(layer, x)
    else:
        result = layer.down_proj(layer.act_fn(made[0]) * made[1])
    return result


def _attention(
    layer: Any, hidden_states: torch.Tensor, position_embeddings: Any = None, attention_mask: Any = None,
    past_key_values: Any = None, **given: Any,
) -> Any:
    """Upstream's, with query, key and value made together and a rotation of one step."""
    made = None
    if past_key_values is None:
        made = _together([layer.q_proj, layer.k_proj, layer.v_proj], hidden_states)
    if made is None:
        return type(layer).forward(
            layer, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
            past_key_values=past_key_values, **given,
        )  # fmt: skip
    query, key, value = (states.unflatten(-1, (-1, layer.head_dim)) for states in made)  # (rows, tokens, heads, size)
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query), layer.k_norm(key)
    cos, sin = (part.unsqueeze(2) for part in position_embeddings)
    query, key = _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)
    eager = sys.modules[type(layer).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(layer.config._attn_implementation, eager)
    answer, weights = attend(
        layer, *(states.transpose(1, 2) for states in (query, key, value)), attention_mask,
        dropout=layer.attention_dropout if layer.training else 0.0, scaling=layer.scaling,
        sliding_window=getattr(layer, "sliding_window", None), **given,
    )  # fmt: skip
    return layer.o_proj(answer.reshape(*hidden_states.shape[:-1], -1)), weights


def _together(layers: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """What `layers` make of the same `x`; None where one of them wants to be called itself."""
    if any(type(layer) is not Linear or layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
        return None  # PEFT chooses adapters by row through hooks
    return _adapted(layers, x)


def _adapted(layers: Sequence[Any], x: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    names = [_only_adapter(layer, x) for layer in layers]
    if None in names:
        return None
    named = list(zip(layers, names, strict=True))
    made: tuple[torch.Tensor, ...] = _Adapted.apply(
        x, tuple(layer.scaling[name] for layer, name in named), *(layer.base_layer.weight for layer in layers),
        *(layer.lora_A[name].weight for layer, name in named), *(layer.lora_B[name].weight for layer, name in named),
    )  # fmt: skip
    return made


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
    """x W' + s x A' B' of each layer, for one x (..., in) and of each layer W (out, in), A (r, in) and B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scaling: tuple[float, ...], *weights: torch.Tensor) -> Any:
        count = len(scaling)
        bases, first, second = weights[:count], weights[count : 2 * count], weights[2 * count :]
        rows = x.reshape(-1, x.size(-1))
        down = torch.cat(first).to(x.dtype)
        ups = [(b * factor).to(x.dtype) for b, factor in zip(second, scaling, strict=True)]
        inner = rows @ down.T
        ctx.scaling, ctx.ranks, ctx.type = scaling, [len(a) for a in first], first[0].dtype
        ctx.save_for_backward(rows, down, inner, *bases, *ups)
        parts = zip(bases, inner.split(ctx.ranks, 1), ups, strict=True)
        return tuple((rows @ base.T).addmm_(part, up.T).view(*x.shape[:-1], -1) for base, part, up in parts)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, down, inner, *rest = ctx.saved_tensors
        bases, ups = rest[: len(gradients)], rest[len(gradients) :]
        backs = [gradient.reshape(-1, gradient.size(-1)) for gradient in gradients]
        lifted = torch.cat([back @ up for back, up in zip(backs, ups, strict=True)], 1)
        first = (lifted.T @ rows).to(ctx.type).split(ctx.ranks)
        parts = zip(backs, inner.split(ctx.ranks, 1), ctx.scaling, strict=True)
        second = [(back.T @ part).to(ctx.type) * factor for back, part, factor in parts]
        x = None
        if ctx.needs_input_grad[0]:
            x = lifted @ down
            for back, base in zip(backs, bases, strict=True):
                x.addmm_(back, base)
            x = x.view(*gradients[0].shape[:-1], -1)
        return x, None, *(None for _ in bases), *first, *second


class _Rotation(torch.autograd.Function):
    """Rotary positions: x cos + (-x2, x1) sin for the halves x1, x2 of x (..., size)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = x.size(-1) // 2
        turn = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        ctx.save_for_backward(cos, turn)
        return torch.addcmul(x * cos, x.roll(half, -1), turn)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        cos, turn = ctx.saved_tensors
        half = gradient.size(-1) // 2
        return torch.addcmul(gradient * cos, gradient.roll(half, -1), turn.roll(half, -1)), None, None


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


_FAMILIES = ("transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3")
"""By name: to import Qwen3's module costs a Llama's start a tenth of a second."""
_FORWARDS: dict[str, Callable[..., Any]] = {"RMSNorm": _norm, "MLP": _mlp, "Attention": _attention}

"""Weights there and back through 4 bit: what a QLoRA base really computed with. Shared by MERGE and PROOF."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.config.model import Model
from finetune.config.training import Method

if TYPE_CHECKING:
    import torch

_BLOCKSIZE = 64
"""bitsandbytes' block for 4-bit weights; transformers has no key to change it."""


@dataclass(frozen=True)
class RoundTrip:
    """Which modules were 4-bit in training, and how (bitsandbytes' names)."""

    modules: frozenset[str]
    """Names in the checkpoint, without `.weight`."""
    quant_type: str = "nf4"
    double: bool = True
    dtype: str = "bfloat16"
    """The number format the weights were quantised from and dequantised to."""

    @classmethod
    def of(cls, facts: Mapping[str, Any], method: Method, model: Model) -> "RoundTrip | None":
        """From the facts of an adapter artifact; None when nothing was quantised."""
        modules = facts.get("quantised_modules") or ()
        if not modules:
            return None
        bnb = method.bnb or {}
        return cls(
            modules=frozenset(modules),
            quant_type=str(bnb.get("bnb_4bit_quant_type", "fp4")),
            double=bool(bnb.get("bnb_4bit_use_double_quant", False)),
            dtype=model.dtype,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "modules": sorted(self.modules), "quant_type": self.quant_type, "double_quant": self.double,
            "blocksize": _BLOCKSIZE, "from_dtype": self.dtype,
        }  # fmt: skip

    def apply(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Quantise a whole weight as at loading (QLoRA, 2305.14314) and dequantise it; same shape and dtype."""
        import torch
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            weight.to(getattr(torch, self.dtype)),
            blocksize=_BLOCKSIZE, quant_type=self.quant_type, compress_statistics=self.double,
        )  # fmt: skip
        back: torch.Tensor = functional.dequantize_4bit(packed, state)
        return back.to(weight.dtype)

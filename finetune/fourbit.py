"""Weights there and back through 4 bit: what a QLoRA base really computed with. Shared by training, BASES and MERGE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.base import modules_4bit, quantised_modules
from finetune.errors import RecipeError

if TYPE_CHECKING:
    import torch

ROUND_TRIPPED, AS_IT_IS = "round-tripped 4-bit", "as it is"
"""Names of the two bases that a QLoRA adapter can be merged into."""


@dataclass(frozen=True)
class RoundTrip:
    """Which modules were 4-bit in training, and how (bitsandbytes' names)."""

    modules: frozenset[str]
    """Names in the checkpoint, without `.weight`."""
    quant_type: str = "nf4"
    double_quant: bool = True
    blocksize: int = 64
    """Weights that share one scale; bitsandbytes takes 64, on some ROCm devices 128."""
    from_dtype: str = "bfloat16"
    """The number format the weights were quantised from and dequantised to."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "RoundTrip | None":
        """From the facts of an adapter artifact (`four_bit`, see `seen`); None when nothing was quantised."""
        if "four_bit" not in facts and facts.get("quantised_modules"):
            raise RecipeError.one(
                "adapter", None, "it was trained in 4 bit before block size and double quantisation were recorded",
                "train it again: which numbers its base had is not known",
            )  # fmt: skip
        found = facts.get("four_bit")
        return cls(**{**found, "modules": frozenset(found["modules"])}) if found else None

    @classmethod
    def seen(cls, model: Any) -> "RoundTrip | None":
        """What the 4-bit modules of a loaded model say of themselves; None where it has none."""
        states = [_state(module) for _, module in modules_4bit(model)]
        if not states:
            return None
        kinds = {(s.quant_type, bool(s.nested), int(s.blocksize), str(s.dtype).removeprefix("torch.")) for s in states}
        assert len(kinds) == 1, f"4-bit modules of several kinds: {sorted(kinds)}"
        return cls(frozenset(quantised_modules(model)), *kinds.pop())

    def describe(self) -> dict[str, Any]:
        """As it is recorded in an adapter's facts and in merge.json."""
        return {
            "modules": sorted(self.modules), "quant_type": self.quant_type, "double_quant": self.double_quant,
            "blocksize": self.blocksize, "from_dtype": self.from_dtype,
        }  # fmt: skip

    def differs_from(self, other: "RoundTrip") -> list[str]:
        """Names of the recorded things that are not the same."""
        mine, theirs = self.describe(), other.describe()
        return [name for name in mine if mine[name] != theirs[name]]

    def apply(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Quantise a whole weight as at loading (QLoRA, 2305.14314) and dequantise it; same shape and dtype."""
        import torch
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            weight.to(getattr(torch, self.from_dtype)),
            blocksize=self.blocksize, quant_type=self.quant_type, compress_statistics=self.double_quant,
        )  # fmt: skip
        back: torch.Tensor = functional.dequantize_4bit(packed, state)
        return back.to(weight.dtype)


def dequantised(module: Any) -> "torch.Tensor":
    """The weight that a Linear4bit computes with, in the number format it was quantised from."""
    from bitsandbytes import functional

    weight: torch.Tensor = functional.dequantize_4bit(module.weight.data, _state(module))
    return weight


def _state(module: Any) -> Any:
    """bitsandbytes keeps it with the weight and with the module; wrappers that replace the weight lose the first."""
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    assert state is not None, "a 4-bit module without its quantisation state"
    return state

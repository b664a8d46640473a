"""Weights there and back through 4 bit: what a QLoRA base really computed with. Shared by training, BASES and MERGE."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.base import modules_4bit, quantised_modules
from finetune.deltas import DTYPE, cuts
from finetune.errors import RecipeError
from finetune.libraries import bitsandbytes
from finetune.shards import read_header, shard_names

if TYPE_CHECKING:
    import torch

    Packed = tuple[torch.Tensor, torch.Tensor]
    """4-bit codes, two in a byte, and one float32 scale for each block."""

ROUND_TRIPPED, AS_IT_IS = "round-tripped 4-bit", "as it is"
"""Names of the two bases that a QLoRA adapter can be merged into."""
TRAINED_ON = ("nf4-double", "nf4", "fp4", "as-it-is")
"""What a user can say of the base of an adapter from elsewhere."""
_CACHED = 1 << 18
"""Weights that a thread works on at once: 1 MiB in float32, of which bitsandbytes makes half a dozen copies."""
_NEVER_4BIT = ("model.embed_tokens.", "lm_head.")


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

    def cuttable(self, shape: Sequence[int]) -> bool:
        """Whether rows of such a matrix are quantised alone as they are within the whole: each begins with a block.

        Where it does not, bitsandbytes 0.50.2 takes wrong scales on CPUs with AVX-512 (640 x 192 in blocks of 128), and
        other wrong ones for a part than for the whole, which is what was trained on.
        """
        return len(shape) == 2 and shape[1] % self.blocksize == 0

    def pieces(self, shape: Sequence[int], first: int, last: int) -> Iterator[tuple[int, int]]:
        """Rows [first, last) of such a matrix in ranges that the caches of torch's threads hold; all at once where it
        cannot be cut."""
        import torch

        if not self.cuttable(shape):
            return iter([(first, last)])
        return cuts(first, last, _CACHED * torch.get_num_threads() // max(1, shape[-1]))

    def room(self, shape: Sequence[int]) -> "Packed":
        """Memory for such a matrix in 4 bit. In one piece: many small ones would lie between what is needed for moments
        only, and keep 350 MB of that from going back to the system (25,600 x 5,120 weights)."""
        import torch

        count = prod(shape)
        return torch.empty(-(-count // 2), dtype=torch.uint8), torch.empty(-(-count // self.blocksize))

    def pack(self, rows: "torch.Tensor", packed: "Packed", first: int) -> None:
        """Put 4-bit codes and float32 scales of the rows from `first` on, which begin with a block, into their place
        (QLoRA, 2305.14314)."""
        import torch

        functional = bitsandbytes()
        codes, state = functional.quantize_4bit(
            rows.to(getattr(torch, self.from_dtype)), blocksize=self.blocksize, quant_type=self.quant_type
        )
        for target, made in zip(self._part(packed, rows.shape, first), (codes.view(-1), state.absmax), strict=True):
            target.copy_(made)

    def compress(self, packed: "Packed") -> None:
        """With double quantisation, send the scales of a whole matrix there and back through 8 bit. All at once: their
        mean is taken out first."""
        if self.double_quant:
            functional, scales = bitsandbytes(), packed[1]
            mean = scales.mean()
            codes, state = functional.quantize_blockwise(scales.sub_(mean), blocksize=256)
            scales.copy_(functional.dequantize_blockwise(codes, state)).add_(mean)

    def unpack(self, packed: "Packed", first: int, rows: "torch.Tensor") -> None:
        """Fill `rows`, those from `first` on, with what their codes and scales stand for."""
        import torch

        functional, kind = bitsandbytes(), getattr(torch, self.from_dtype)
        codes, scales = self._part(packed, rows.shape, first)
        state = functional.QuantState(
            scales, rows.shape, functional.get_4bit_type(self.quant_type, rows.device), self.blocksize,
            self.quant_type, kind,
        )  # fmt: skip
        rows.copy_(functional.dequantize_4bit(codes.view(-1, 1), state))

    def apply(self, weight: "torch.Tensor") -> "torch.Tensor":
        """A whole weight as it was quantised at loading and dequantised; same shape and dtype."""
        import torch

        packed, back = self.room(weight.shape), torch.empty_like(weight)
        for first, last in self.pieces(weight.shape, 0, len(weight)):
            self.pack(weight[first:last], packed, first)
        self.compress(packed)
        for first, last in self.pieces(weight.shape, 0, len(weight)):
            self.unpack(packed, first, back[first:last])
        return back

    def _part(self, packed: "Packed", shape: Sequence[int], first: int) -> "Packed":
        """Codes and scales of `shape[0]` rows from `first` on."""
        codes, scales = packed
        start, count = first * prod(shape[1:]), prod(shape)
        block = start // self.blocksize
        return codes[start // 2 :][: -(-count // 2)], scales[block:][: -(-count // self.blocksize)]


def told(adapter_dir: Path, base_dir: Path, trained_on: str | None) -> RoundTrip | None:
    """The 4-bit base of an adapter from elsewhere, as the user tells it; None: it was trained on the base as it is.

    Raises RecipeError where the adapter's own files speak of 4 bit and nobody says what to do about it.
    """
    if trained_on is None:
        if hint := says_4bit(adapter_dir):
            raise RecipeError.one(
                "--trained-on", None, f"{hint}, and it does not record which modules were 4-bit",
                "--trained-on nf4-double (QLoRA with bnb_4bit_use_double_quant), nf4 or fp4: into the numbers that its"
                " 4-bit weights stood for (every linear layer but the head); as-it-is: into the original ones",
            )  # fmt: skip
        return None
    if trained_on not in TRAINED_ON:
        raise RecipeError.one("--trained-on", trained_on, "not a kind of base", f"one of {', '.join(TRAINED_ON)}")
    if trained_on == "as-it-is":
        return None
    quant_type, _, double = trained_on.partition("-")
    tensors = [tensor for shard in shard_names(base_dir) for tensor in read_header(base_dir / shard).values()]
    linear = [tensor for tensor in tensors if len(tensor.shape) == 2 and not tensor.name.startswith(_NEVER_4BIT)]
    return RoundTrip(
        frozenset(tensor.name.removesuffix(".weight") for tensor in linear), quant_type, bool(double),
        from_dtype=DTYPE[linear[0].dtype],
    )  # fmt: skip


def says_4bit(adapter_dir: Path) -> str | None:
    """Where the adapter's own files say that it was trained in 4 bit: PEFT writes it into README.md, and some hubs
    name quantised bases so."""
    card, config = adapter_dir / "README.md", adapter_dir / "adapter_config.json"
    if card.is_file() and "load_in_4bit: true" in card.read_text(encoding="utf-8", errors="replace").lower():
        return "the adapter's README.md says load_in_4bit: True"
    try:
        name = str(json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        return None  # Adapter.read says what is wrong with it
    return f"the adapter names {name} as its base" if re.search(r"bnb|4bit|nf4", name, re.IGNORECASE) else None


def dequantised(module: Any) -> "torch.Tensor":
    """The weight that a Linear4bit computes with, in the number format it was quantised from."""
    weight: torch.Tensor = bitsandbytes().dequantize_4bit(module.weight.data, _state(module))
    return weight


def _state(module: Any) -> Any:
    """bitsandbytes keeps it with the weight and with the module; wrappers that replace the weight lose the first."""
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    assert state is not None, "a 4-bit module without its quantisation state"
    return state

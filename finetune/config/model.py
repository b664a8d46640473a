"""Section `model`: which base, in which number format, and the shape the planner reads without a download."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section

Positive = Annotated[int, Field(ge=1)]


class Architecture(Section):
    """Shape of a Qwen3 or Llama decoder, in the spelling of the Hugging Face config.json."""

    model_type: Literal["qwen3", "llama"]
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    tie_word_embeddings: bool
    max_position_embeddings: Positive

    @property
    def linear_inputs(self) -> set[int]:
        """Input widths of the decoder's linear layers."""
        return {self.hidden_size, self.intermediate_size, self.num_attention_heads * self.head_dim}

    @property
    def linear_sides(self) -> set[int]:
        """Input and output widths of the decoder's linear layers."""
        return self.linear_inputs | {self.num_key_value_heads * self.head_dim}


class Yarn(Section):
    """A context extended by YaRN (arXiv 2309.00071), in the spelling of the Hugging Face config.json."""

    rope_type: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(gt=1)]
    original_max_position_embeddings: Positive
    """Positions that the frequencies were trained for; Qwen3: 32768 (its config.json says 40960, answers included)."""

    @property
    def positions(self) -> int:
        return int(self.original_max_position_embeddings * self.factor)


class Model(Section):
    name: str
    """Hub id; written into adapter, card and lineage."""
    revision: str | None = None
    """Commit on the hub (40 hex digits), required for a model that is downloaded."""
    origin: Literal["hub", "embedded"] = "hub"
    """`embedded`: built at set-up from a pinned package, no network afterwards."""
    key: str
    """Short name; for embedded models the one that finetune.embedded knows."""
    path: str | None = None
    """Folder with the weights; wins over the hub."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    modes: tuple[Literal["plain", "think"], ...] = ("plain",)
    """Modes the chat template knows."""
    default_mode: Literal["plain", "think"] = "plain"
    """Mode baked into the exported template."""
    licence: str
    note: str = ""
    """What must be said wherever the model is named (for example how its weights were made)."""
    architecture: Architecture
    rope_parameters: Yarn | None = None
    """Trained, scored and exported with this YaRN; null: as the base's own config.json says."""

    @property
    def positions(self) -> int:
        """The longest sequence in tokens."""
        return self.rope_parameters.positions if self.rope_parameters else self.architecture.max_position_embeddings

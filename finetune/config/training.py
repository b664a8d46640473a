"""Sections `method`, `cpt`, `sft`, `dpo`: how an adapter is trained. `trl`, `lora` and `bnb` keep upstream's names."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Upstream = dict[str, Any]


class Method(Section):
    name: Literal["lora", "qlora"]
    lora: Upstream = {}
    """Keys of peft.LoraConfig, handed on unchanged."""
    bnb: Upstream | None = None
    """Keys of transformers.BitsAndBytesConfig; null trains on the unquantised base."""


class Training(Section):
    """What CPT, SFT and DPO share."""

    batch_size: Positive
    """Rows for one optimiser step over all processes together (per device x processes x accumulation); with packing
    packs in place of rows."""
    max_length: Positive
    """Longest row in tokens, and longest pack."""
    max_steps: Positive | None = None
    """Optimiser steps; null: num_train_epochs of trl decides (1 where it is not given). One of both, never both."""
    save_steps: Positive = 20
    """A checkpoint to resume from after so many steps."""
    eval_steps: Positive = 20
    """The evaluation loss after so many steps and at the end; DPO's on held-out pairs, with margin and accuracy."""
    log_steps: Positive = 5
    trl: Upstream = {}
    """Further keys of the TRL config class, handed on unchanged."""

    @property
    def epochs(self) -> float:
        """Passes over the rows where max_steps is null: num_train_epochs of trl, 1 by default."""
        return float(self.trl.get("num_train_epochs", 1))


class Cpt(Training):
    """Continued pre-training on the recipe's `text`, every token supervised."""

    packing: bool = False
    """As in `sft`."""


class Sft(Training):
    """Supervised fine-tuning: only what the model must emit is supervised, end of turn included."""

    packing: bool = False
    """Whole rows joined to packs of up to max_length tokens; none is cut and none sees another."""


class Pairs(Section):
    """On-policy preferences: answers sampled from the SFT model, ranked by the task's own metric."""

    prompts: Positive = 48
    """Training prompts of the main task to sample for."""
    eval_prompts: Annotated[int, Field(ge=0)] = 8
    """Prompts of its valid side: their pairs are measured on (loss, margin, accuracy) and never trained; 0 for none."""
    samples: Annotated[int, Field(ge=1, le=16)] = 2
    """Answers sampled for each prompt, beside the gold answer."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0


class Dpo(Training):
    """Direct preference optimisation; the reference is the frozen adapter it starts from."""

    pairs: Pairs | None = Pairs()
    """null: only the ready-made preferences of the corpus are used."""

"""Key `export` and section `quantise`: which quantised models are made beside the merged one, and how."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.model import Architecture
from finetune.config.section import Section

Scheme = Literal["w4a16", "w8a8"]
"""w4a16: weights in 4-bit integers, one scale for each group of inputs. w8a8: weights (a scale for each output) and
activations (a scale for each token, found while serving) in 8-bit integers. Embedding and head stay as they are."""

Positive = Annotated[int, Field(ge=1)]


class Quantise(Section):
    """How the models of `export` are made; all of it by llm-compressor in an environment of its own."""

    rows: Positive = 256
    """Training rows, rendered as they are served, that the rounding is calibrated on; all of them where there are
    fewer."""
    max_length: Positive = 2048
    """Tokens of a calibration row that are read; what is longer is cut at its end."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """`gptq`: each rounding error is made good by the weights not yet rounded (arXiv 2210.17323). `nearest` reads no
    calibration row and takes seconds."""
    group_size: Literal[32, 64, 128] | None = None
    """Inputs that share a scale in w4a16; null: the largest of these that divides every linear layer of the model."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.8
    """SmoothQuant's strength for w8a8 (arXiv 2211.10438): how much of the activations' range is moved into the weights
    before both are rounded; 0 leaves it out."""

    def group_for(self, shape: Architecture) -> int | None:
        """The group size of w4a16 on this model; None where the one asked for, or any, does not fit.

        vLLM's 4-bit kernels for CPUs want both sides of a layer to be multiples of 32.
        """
        asked = (self.group_size,) if self.group_size else (128, 64, 32)
        if any(side % 32 for side in shape.linear_sides):
            return None
        return next((size for size in asked if not any(side % size for side in shape.linear_inputs)), None)

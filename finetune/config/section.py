"""What every config section shares: frozen, no unknown keys, a sentence under each field."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the Recipe. Unknown keys are errors; a loaded section never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

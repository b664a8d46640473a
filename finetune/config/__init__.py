"""The recipe's schema, a file for each group of sections, and `load()`."""

from finetune.config.load import choices, load
from finetune.config.recipe import Recipe

__all__ = ["Recipe", "choices", "load"]

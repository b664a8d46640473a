"""Key `export` and section `quantise`: what would fail or have no effect only after hours of training."""

from collections.abc import Iterator
from pathlib import Path

from finetune.config import Recipe
from finetune.errors import Problem, RecipeError
from finetune.metrics import METRICS

_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-quantise"
_STAMP = ".finetune-setup"
"""Written by scripts/setup.sh when everything is installed."""


def check_export(recipe: Recipe) -> Iterator[Problem]:
    how, schemes, shape = recipe.quantise, recipe.export, recipe.model.architecture
    if not schemes:
        return
    if len(set(schemes)) < len(schemes):
        yield Problem("export", list(schemes), "names a scheme twice", f"export=[{','.join(dict.fromkeys(schemes))}]")
    if "w4a16" in schemes:
        best = how.model_copy(update={"group_size": None}).group_for(shape)
        if best is None:
            rule = f"w4a16 needs layers whose sides are multiples of 32, this model has {sorted(shape.linear_sides)}"
            yield Problem("export", list(schemes), rule, "leave w4a16 out")
        elif how.group_size and how.group_for(shape) is None:
            inputs = ", ".join(map(str, sorted(shape.linear_inputs)))
            rule = f"does not divide the inputs of the linear layers ({inputs})"
            yield Problem("quantise.group_size", how.group_size, rule, f"quantise.group_size={best}")
    elif how.group_size:
        yield Problem("quantise.group_size", how.group_size, "is w4a16's alone", "quantise.group_size=null")
    for name, task in recipe.tasks.items():
        if METRICS[task.metric].kind == "likelihood":
            rule = "asks for likelihoods, and quantised models only for answers: their loss would not be known"
            yield Problem(f"tasks.{name}.metric", task.metric, rule, "export=[], or metric: exact_match")


def check_environment(recipe: Recipe) -> Iterator[Problem]:
    if recipe.export:
        try:
            interpreter()
        except RecipeError as error:
            yield from error.problems


def interpreter() -> Path:
    """The Python that has llm-compressor. Raises RecipeError where it is not set up."""
    if not (_ENVIRONMENT / _STAMP).is_file():
        raise RecipeError.one(
            "export", str(_ENVIRONMENT), "quantising needs an environment of its own, and it is not there",
            "scripts/setup.sh quantise (about 2 minutes, 1.4 GB), or export=[]",
        )  # fmt: skip
    return _ENVIRONMENT / "bin" / "python"

"""Which keys TRL, PEFT and bitsandbytes know, read from the installed sources with `ast`.

Importing SFTConfig takes seconds and torch; parsing its source takes hundredths of a second. A test holds what is
read here equal to `dataclasses.fields` and `inspect.signature` of the imported classes.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Class = Literal["SFTConfig", "DPOConfig", "LoraConfig", "BitsAndBytesConfig"]

_TRAINING = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
)
# Bases first, as dataclasses collect them. The last one is the class itself.
_SOURCES: Mapping[Class, tuple[tuple[str, str, str], ...]] = {
    "SFTConfig": (*_TRAINING, ("trl", "trainer/sft_config.py", "SFTConfig")),
    "DPOConfig": (*_TRAINING, ("trl", "trainer/dpo_config.py", "DPOConfig")),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
    "BitsAndBytesConfig": (("transformers", "utils/quantization_config.py", "BitsAndBytesConfig"),),
}


@functools.cache
def field_annotations(name: Class) -> Mapping[str, str]:
    """Field name -> its annotation as written upstream ("" where there is none), bases first.

    Only what may be passed to the constructor: class variables and `field(init=False)` are left out.
    """
    found: dict[str, str] = {}
    for source in _SOURCES[name]:
        found.update(_read_class(*source))
    return MappingProxyType(found)


def owner(name: Class) -> str:
    """Package and class as a user would look it up: `trl.SFTConfig`."""
    return f"{_SOURCES[name][-1][0]}.{name}"


@functools.cache
def _read_class(package: str, file: str, name: str) -> Mapping[str, str]:
    node = _find_class(_source(package, file), name)
    return _init_arguments(node) if name == "BitsAndBytesConfig" else _dataclass_fields(node)


def _source(package: str, file: str) -> str:
    # find_spec on a top-level name runs none of the package's code.
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is a direct dependency"
    assert spec.origin is not None
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")


def _find_class(source: str, name: str) -> ast.ClassDef:
    # Only the lines of the class are parsed: the modules around it are several times longer.
    lines = source.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith((f"class {name}(", f"class {name}:"))), None)
    assert first is not None, f"class {name} is not where it was"
    after = (i for i in range(first + 1, len(lines)) if lines[i][0] not in " \n#)")
    block = lines[first : next(after, len(lines))]
    (node,) = ast.parse("".join(block)).body
    assert isinstance(node, ast.ClassDef)
    return node


def _dataclass_fields(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if "ClassVar" not in annotation and not _is_hidden(item.value):
            found[item.target.id] = annotation
    return found


def _is_hidden(value: ast.expr | None) -> bool:
    """Whether the default is `field(..., init=False)`."""
    if not isinstance(value, ast.Call):
        return False
    return any(
        word.arg == "init" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in value.keywords
    )


def _init_arguments(node: ast.ClassDef) -> dict[str, str]:
    (init,) = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    arguments = [*init.args.args[1:], *init.args.kwonlyargs]
    return {word.arg: ast.unparse(word.annotation) if word.annotation else "" for word in arguments}


@functools.cache
def scheduler_names() -> tuple[str, ...]:
    """Values of transformers.SchedulerType."""
    return _enum_values("trainer_utils.py", "SchedulerType")


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """Values of transformers' OptimizerNames."""
    return _enum_values("training_args.py", "OptimizerNames")


@functools.cache
def dpo_losses() -> tuple[str, ...]:
    """The losses that TRL's DPOTrainer computes, from its own chain of comparisons."""
    return tuple(dict.fromkeys(re.findall(r'\bloss_type == "(\w+)"', _source("trl", "trainer/dpo_trainer.py"))))


@functools.cache
def dpo_divergences() -> tuple[str, ...]:
    """Values of f_divergence_type, from the comparisons of TRL's DPOTrainer."""
    found = re.findall(r'\bf_divergence_type [!=]= "(\w+)"', _source("trl", "trainer/dpo_trainer.py"))
    return tuple(dict.fromkeys(found))


@functools.cache
def divergent_losses() -> tuple[str, ...]:
    """The losses for which TRL allows another divergence than reverse_kl, from the set in its DPOTrainer."""
    found = re.search(r"\bf_divergence_loss_types = (\{[^}]*\})", _source("trl", "trainer/dpo_trainer.py"))
    assert found is not None, "TRL's set of losses for f-divergences is not where it was"
    return tuple(sorted(ast.literal_eval(found[1])))


def _enum_values(file: str, name: str) -> tuple[str, ...]:
    node = _find_class(_source("transformers", file), name)
    return tuple(
        str(item.value.value)
        for item in node.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    )

"""Compose with Hydra, validate with pydantic, report every problem at once. The only place that knows Hydra."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from finetune.config.build import BUILDERS
from finetune.config.data import HERE
from finetune.config.recipe import Recipe
from finetune.errors import Problem, RecipeError

CONFIGS = HERE / "configs"
RECIPES = HERE / "recipes"
GROUPS = ("recipe", "model", "method", "machine", "tracking")


def load(overrides: Sequence[str], *, config_dir: Path | None = None) -> Recipe:
    """Build the Recipe from command line words such as `recipe=legal sft.batch_size=16`.

    `config_dir` adds private recipes (`DIR/*.yaml`) and groups (`DIR/model/*.yaml`). Raises RecipeError with every
    unknown key, wrong type and missing value at once.
    """
    return validate(compose(overrides, config_dir=config_dir))


def compose(overrides: Sequence[str], *, config_dir: Path | None = None) -> dict[str, Any]:
    """The merged plain data, before validation."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    recipes = choices("recipe", config_dir)
    _register(recipes)
    words = [_settable(word) for word in overrides]
    if config_dir is not None:
        words.append(f"hydra.searchpath=[file://{config_dir.resolve()}]")
    _check_choices(words, config_dir)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra_compose("train", overrides=words)
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        message = " ".join(str(error).split())
        raise RecipeError.one(
            "command line", " ".join(overrides), message, "write keys as section.key=value, lists as [a,b]"
        ) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def validate(plain: dict[str, Any]) -> Recipe:
    """Freeze plain data into a Recipe, or raise all problems together."""
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(_problem(dict(item), plain) for item in error.errors()) from error


def choices(group: str, config_dir: Path | None = None) -> dict[str, Path]:
    """Name -> file of every option of a Hydra group, private ones included; none of them may take a name of ours."""
    folders = [RECIPES if group == "recipe" else CONFIGS / group]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise RecipeError.one("--config-dir", str(config_dir), "is not a folder", "name a folder with *.yaml")
        folders += [config_dir] if group == "recipe" else [config_dir / group]
    found: dict[str, Path] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.yaml"))):
        if (other := found.setdefault(file.stem, file)).resolve() != file.resolve():
            rule = f"{group}={file.stem} is a name of the toolkit already ({other}), and one of both would be shadowed"
            raise RecipeError.one(str(file), None, rule, f"rename it, for example {file.stem}_ours.yaml")
    return found


def _register(recipes: dict[str, Path]) -> None:
    """Put recipes into Hydra's ConfigStore: `recipe=legal` then works from any directory."""
    from hydra.core.config_store import ConfigStore

    for name, file in recipes.items():
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError.one(str(file), None, " ".join(str(error).split()), "mend this YAML file") from error
        if not isinstance(content, dict):
            raise RecipeError.one(str(file), None, "a recipe is a mapping of keys", "start from recipes/legal.yaml")
        ConfigStore.instance().store(group="recipe", name=name, node={"name": name, **content}, package="_global_")


def _settable(word: str) -> str:
    """Let any key be set: a typo then reaches our own check with its did-you-mean, not Hydra's struct error."""
    key, equals, _ = word.partition("=")
    if word[:1] == "~":  # takes a key out; needs no value
        return word
    if not equals:
        raise RecipeError.one("command line", word, "is not key=value", f"write {word}=VALUE, or see --help")
    return word if key in GROUPS or key[:1] == "+" else f"++{word}"


def _check_choices(words: Iterable[str], config_dir: Path | None) -> None:
    given = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in GROUPS)
    known = {group: sorted(choices(group, config_dir)) for group in GROUPS}
    problems = [
        Problem(group, value, "is not a known choice", suggest(value, known[group]))
        for group, value in given.items()
        if value not in known[group]
    ]
    if "recipe" not in given:
        options = known["recipe"]
        problems.append(Problem("recipe", None, "say which recipe to run", f"recipe={options[0]}" + _others(options)))
    if problems:
        raise RecipeError(problems)


def _others(options: Sequence[str]) -> str:
    return f" (or {', '.join(options[1:])})" if len(options) > 1 else ""


def suggest(word: str, options: Sequence[str]) -> str:
    """The did-you-mean at the end of an error: the closest option, and all of them where they are few."""
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    known = f"one of {', '.join(options)}"
    if len(options) > 20:
        return f"did you mean {close[0]}?" if close else "drop it, or look the name up"
    return f"did you mean {close[0]}? ({known})" if close else f"use {known}"


def _problem(item: dict[str, Any], plain: dict[str, Any]) -> Problem:
    # Under `build` pydantic names the builder between a section and its key; nobody writes it there.
    location = tuple(part for i, part in enumerate(item["loc"]) if i != 2 or item["loc"][0] != "build")
    if item["type"].startswith("union_tag_"):
        path, told = ".".join(map(str, location)), (item["input"] or {}).get("builder")
        return Problem(f"{path}.builder", told, "is not one of the builders", suggest(str(told or ""), list(BUILDERS)))
    path = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        built = BUILDERS.get(str(item["loc"][2])) if location[0] == "build" else None
        keys = list(built.model_fields) if built else _fields_at(location[:-1])
        return Problem(path, item["input"], "is not a key of this section", suggest(str(location[-1]), keys))
    if item["type"] == "missing":
        return Problem(path, None, "must be given", f"add {path}=... on the command line or in the recipe")
    return Problem(path, item["input"], str(item["msg"]).removeprefix("Value error, "), f"change {path}")


def _fields_at(location: Sequence[Any]) -> list[str]:
    """The keys that the schema allows at a place such as ("tasks", "fields")."""
    model: Any = Recipe
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        else:
            model = _inner(model)
        if _is_optional(model):
            model = _inner(model)
    model = model if isinstance(model, type) else _inner(model)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _is_optional(annotation: Any) -> bool:
    return type(None) in getattr(annotation, "__args__", ())


def _inner(annotation: Any) -> Any:
    """`dict[str, X]`, `X | None` and `tuple[X, ...]` -> X."""
    for argument in getattr(annotation, "__args__", ()):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return None

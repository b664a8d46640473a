"""A model directory: every check of this package, in the order in which a reader meets the files."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune import shards
from finetune.errors import Problem, RecipeError
from finetune.verify import settings, text, weights

Say = Callable[[str], None]
_LEFTOVER = re.compile(
    r"adapter_.*|optimizer.*|scheduler\.pt|rng_state.*|trainer_state\.json|training_args\.bin|.*\.(bin|pt|pth|pkl|ckpt)"
    r"|.*\.(writing|partial|tmp|incomplete)|checkpoint-\d+|global_step\d+|.*\.py"
)


def check(directory: Path, *, deep: bool, say: Say) -> list[Problem]:
    """All problems of one model directory."""
    problems = list(_files(directory))
    config = _read(directory / "config.json", problems)
    if config is None:
        return problems
    quantised = isinstance(config.get("quantization_config"), dict)
    problems += settings.check_config(directory, config)
    tensors = _tensors(directory, problems)
    if tensors:
        problems += weights.check_names_and_shapes(directory, config, tensors, quantised=quantised)
    tokenizer = _read(directory / "tokenizer.json", problems)
    tokenizer_config = _read(directory / "tokenizer_config.json", problems)
    ids = text.token_ids(tokenizer or {})
    problems += text.check_tokenizer(directory, config, ids, tokenizer_config or {}, tensors)
    end = text.check_template(directory, tokenizer_config or {}, ids, problems)
    problems += settings.check_generation(directory, config, ids, end, tokenizer_config or {})
    if deep and tensors:
        problems += weights.check_values(config, tensors, say)
    return problems


def _files(directory: Path) -> Iterator[Problem]:
    for path in sorted(directory.iterdir()):
        name = path.name
        if _LEFTOVER.fullmatch(name):
            yield Problem(
                str(path), None, "a leftover of training or of another tool, which some readers load or refuse",
                "remove it: a model directory holds weights, configs, tokenizer and template",
            )  # fmt: skip
        if path.is_symlink() and not path.exists():
            yield Problem(str(path), None, "a link that leads nowhere", "copy the file itself")
        elif path.is_file() and path.stat().st_mode & 0o044 != 0o044:
            mode = oct(path.stat().st_mode & 0o777)
            yield Problem(str(path), mode, "only its owner may read it, and a server often runs as another user",
                          f"chmod 644 {name}")  # fmt: skip


def _tensors(directory: Path, problems: list[Problem]) -> dict[str, shards.Tensor]:
    """Every tensor a server would load; problems of shards, index and foreign files are appended."""
    try:
        names = shards.shard_names(directory)
    except RecipeError as error:
        problems += error.problems
        return {}
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in names and not path.name.startswith(("consolidated", "adapter_")):
            problems.append(Problem(
                str(path), None, "weights that do not belong to this model: servers load every *.safetensors",
                "remove the file",
            ))  # fmt: skip
    found: dict[str, shards.Tensor] = {}
    for name in names:
        try:
            header = shards.read_header(directory / name)
        except RecipeError as error:
            problems += error.problems
            continue
        for twice in sorted(set(header) & set(found)):
            problems.append(Problem(twice, name, "the tensor is in two shards", "save the model again"))
        found |= header
    if (directory / shards.INDEX).exists():
        problems += _index(directory, found)
    return found


def _index(directory: Path, found: dict[str, shards.Tensor]) -> Iterator[Problem]:
    said = shards.weight_map(directory)
    wrong = sorted(
        name for name in said.keys() | found.keys()
        if name not in said or name not in found or found[name].file.name != said[name]
    )  # fmt: skip
    if wrong:
        yield Problem(
            str(directory / shards.INDEX), wrong[:3],
            f"the index is stale: it disagrees with the shards on {len(wrong)} tensors",
            "save the model again, index and shards together",
        )  # fmt: skip


def _read(file: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        kind = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        problems.append(Problem(str(file), None, f"the file {kind}", "copy the model again"))
        return None
    if not isinstance(content, dict):
        problems.append(Problem(str(file), None, "is not a JSON object", "copy the model again"))
        return None
    return content

"""A model directory: every check of this package, in the order in which a reader meets the files."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune import shards
from finetune.errors import RecipeError
from finetune.findings import Finding, finding, named
from finetune.shards import Tensor
from finetune.verify import settings, text, weights

_LEFTOVER = re.compile(
    r"adapter_.*|optimizer.*|scheduler\.pt|rng_state.*|trainer_state\.json|training_args\.bin|.*\.(bin|pt|pth|pkl|ckpt)"
    r"|.*\.(writing|partial|tmp|incomplete)|checkpoint-\d+|global_step\d+|.*\.py"
)


@dataclass
class Model:
    """What one model directory turned out to be."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be checked, or holds for some readers only."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: bool = False


def check(directory: Path) -> Model:
    """All findings of one model directory, from its headers and texts."""
    made = Model(list(_files(directory)))
    config = _read(directory / "config.json", made.findings)
    if config is None:
        return made
    made.tied = bool(config.get("tie_word_embeddings"))
    where = directory / "config.json"
    made.findings += _readable(where, settings.check_config(directory, config))
    made.tensors = _tensors(directory, made.findings)
    if made.tensors:
        made.findings += _readable(
            where, weights.check_names_and_shapes(directory, config, made.tensors, made.notes)
        )
    made.findings += _readable(directory / "tokenizer.json", _texts(directory, config, made))
    return made


def _texts(directory: Path, config: Mapping[str, Any], made: Model) -> Iterator[Finding]:
    """Tokenizer, template, and the defaults of answers, which need the ids of both."""
    tokenizer = _read(directory / "tokenizer.json", made.findings) or {}
    tokenizer_config = _read(directory / "tokenizer_config.json", made.findings) or {}
    ids = text.token_ids(tokenizer)
    yield from text.check_tokenizer(directory, config, ids, tokenizer_config, made.tensors)
    end = text.check_template(directory, tokenizer_config, ids, made.findings, made.notes)
    file = directory / "generation_config.json"
    yield from _readable(file, settings.check_generation(directory, config, ids, end, tokenizer_config))
    if note := settings.rope_note(config):
        made.notes.append(note)


def _readable(where: Path, checks: Iterator[Finding]) -> Iterator[Finding]:
    """The same findings; a value of a kind that the check cannot even read is one more, and ends it."""
    try:
        yield from checks
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        yield finding("value-type", where, None, f"a value is of a kind that no reader expects ({error!r})",
                      "restore the file of the base")  # fmt: skip


def by_file(tensors: Mapping[str, Tensor]) -> dict[Path, list[Tensor]]:
    """Tensors of each file, in file order."""
    files: dict[Path, list[Tensor]] = {}
    for tensor in sorted(tensors.values(), key=lambda tensor: (str(tensor.file), tensor.start)):
        files.setdefault(tensor.file, []).append(tensor)
    return files


def _files(directory: Path) -> Iterator[Finding]:
    for path in sorted(directory.iterdir()):
        name = path.name
        if _LEFTOVER.fullmatch(name):
            yield finding(
                "leftover-file", path, None,
                "a leftover of training or of another tool, which some readers load or refuse",
                "remove it: a model directory holds weights, configs, tokenizer and template",
            )  # fmt: skip
        if path.is_symlink() and not path.exists():
            yield finding("dangling-link", path, None, "a link that leads nowhere", "copy the file itself")
        elif path.is_file() and path.stat().st_mode & 0o044 != 0o044:
            yield finding("private-file", path, oct(path.stat().st_mode & 0o777),
                          "only its owner may read it, and a server often runs as another user",
                          f"chmod 644 {name}")  # fmt: skip


def _tensors(directory: Path, findings: list[Finding]) -> dict[str, Tensor]:
    """Every tensor a server would load; findings about shards, index and foreign files are appended."""
    try:
        names = shards.shard_names(directory)
    except RecipeError as error:
        findings += (named("weight-files", problem) for problem in error.problems)
        return {}
    except (AttributeError, RecursionError, TypeError) as error:
        findings.append(finding("weight-files", directory / shards.INDEX, None, f"no index of weights ({error})",
                                "save the model again"))  # fmt: skip
        return {}
    if outside := [name for name in names if Path(name).name != name]:
        findings.append(finding("weight-files", directory / shards.INDEX, outside, "shards in other folders, which a "
                                "copy of this one would lose", "save the model again"))  # fmt: skip
        return {}
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in names and not path.name.startswith(("consolidated", "adapter_")):
            findings.append(finding(
                "foreign-weights", path, None,
                "weights that do not belong to this model: servers load every *.safetensors", "remove the file",
            ))  # fmt: skip
    found: dict[str, Tensor] = {}
    for name in names:
        try:
            header = shards.read_header(directory / name)
        except RecipeError as error:
            findings += (named("torn-weights", problem) for problem in error.problems)
            continue
        except RecursionError:
            findings.append(finding("torn-weights", directory / name, None, "its header is nested without end",
                                    "copy the file again"))  # fmt: skip
            continue
        findings += weights.check_layout(directory / name, list(header.values()))
        findings += (
            finding("tensor-twice", twice, name, "the tensor is in two shards", "save the model again")
            for twice in sorted(set(header) & set(found))
        )
        found |= header
    if (directory / shards.INDEX).exists():
        findings += _index(directory, found)
    return found


def _index(directory: Path, found: dict[str, Tensor]) -> Iterator[Finding]:
    said = shards.weight_map(directory)
    wrong = sorted(
        name for name in said.keys() | found.keys()
        if name not in said or name not in found or found[name].file.name != said[name]
    )  # fmt: skip
    if wrong:
        yield finding(
            "stale-index", directory / shards.INDEX, wrong[:3],
            f"the index is stale: it disagrees with the shards on {len(wrong)} tensors",
            "save the model again, index and shards together",
        )  # fmt: skip


def _read(file: Path, findings: list[Finding]) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        kind = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        findings.append(finding("model-file", file, None, f"the file {kind}", "copy the model again"))
        return None
    if not isinstance(content, dict):
        findings.append(finding("model-file", file, None, "is not a JSON object", "copy the model again"))
        return None
    return content

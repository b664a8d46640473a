"""A bundle: its model, its adapter, and its papers, complete and unchanged."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.artifacts import hash_file
from finetune.errors import Problem, RecipeError
from finetune.shards import read_header
from finetune.verify import model

Say = Callable[[str], None]
SUMS = "SHA256SUMS"
PAPERS = ("README.md", "report.json", "report.html", "REPORT.md", "lineage.json", "config.yaml", "serve.sh", SUMS)
_NO_PICKLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy")


def check(directory: Path, *, deep: bool, say: Say) -> list[Problem]:
    problems = [
        Problem(str(directory / name), None, "a bundle holds this file, this one does not", "copy the bundle again")
        for name in PAPERS
        if not (directory / name).is_file()
    ]
    problems += _strangers(directory)
    problems += model.check(directory / "model", deep=deep, say=say)
    if (directory / "adapter").is_dir():
        problems += _adapter(directory / "adapter")
    if (directory / SUMS).is_file():
        problems += _sums(directory, deep=deep, say=say)
    return problems


def read_sums(file: Path) -> dict[str, str]:
    """Relative path -> sha256, as sha256sum writes it."""
    sums = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    return sums


def _strangers(directory: Path) -> Iterator[Problem]:
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            yield Problem(str(path), None, "a link, which a copy of the bundle would lose", "copy the file itself")
        elif path.is_file() and path.suffix in _NO_PICKLE and path.parent != directory / "model":
            yield Problem(str(path), None, "a bundle holds no pickle or array file", "remove it")


def _sums(directory: Path, *, deep: bool, say: Say) -> Iterator[Problem]:
    sums = read_sums(directory / SUMS)
    present = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    present.pop(SUMS)
    for name in sorted(present.keys() - sums.keys()):
        yield Problem(str(directory / name), None, f"not listed in {SUMS}: it came after the bundle", "remove it")
    for name in sorted(sums.keys() - present.keys()):
        yield Problem(str(directory / name), None, f"listed in {SUMS} and not there", "copy the bundle again")
    if not deep:
        return
    for name in sorted(sums.keys() & present.keys()):
        if hash_file(present[name]) != sums[name]:
            yield Problem(str(directory / name), None, f"its bytes are not those of {SUMS}", "copy the file again")
    say(f"verify: {len(sums)} hashes compared")


def _adapter(directory: Path) -> Iterator[Problem]:
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = read_header(directory / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        yield Problem(str(directory), None, f"the adapter cannot be read ({error})", "copy the bundle again")
        return
    except RecipeError as error:
        yield from error.problems
        return
    if not tensors or any(not tensor.bytes for tensor in tensors.values()):
        yield Problem(str(directory), None, "the adapter has empty tensors", "save it gathered")
    base = str(config.get("base_model_name_or_path"))
    if base.startswith(("/", ".", "~")):
        yield Problem(str(directory / "adapter_config.json"), base, "a path of the machine that trained it",
                      "write the base model's name")  # fmt: skip

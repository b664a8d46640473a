"""What is placed in a bundle as it came: weights (linked), adapter, quantised models, licence texts, checksums."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.artifacts import Artifact, checked, hash_file, remember, remembered, write_whole
from finetune.config.model import Model
from finetune.corpus.redact import redact_key
from finetune.errors import Problem, RecipeError

if TYPE_CHECKING:
    from finetune.handoff import Config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TEXTS = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


def place_model(checkpoint: Artifact, bundle: Path) -> dict[str, str]:
    """`model/`: weights hard-linked, the rest copied. Returns what each has to be: bundle path -> sha256.

    Raises RecipeError where a file of the checkpoint is not the one that MERGE wrote; what it did not write stays out.
    """
    return _place(checkpoint, "model", bundle / "model")


def place_quantised(exported: Artifact, scheme: str, bundle: Path) -> dict[str, str]:
    """`model-<scheme>/`, the same way."""
    return _place(exported, scheme, bundle / f"model-{scheme}")


def place_adapter(adapter: Artifact, model: Model, bundle: Path) -> dict[str, str]:
    """`adapter/` as a server loads it beside its base: named by hub id and commit, without a path of this machine."""
    folder = bundle / "adapter"
    folder.mkdir()
    known = _take(adapter, {WEIGHTS: folder / WEIGHTS}, bundle)
    config = json.loads(adapter.file(CONFIG).read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": model.name, "revision": model.revision, "inference_mode": True}
    write_whole(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return known


def place_licences(base: Artifact, settings: "Config", documents: Path | None, bundle: Path) -> dict[str, list[str]]:
    """`LICENSES/`: texts of the base, texts that the recipe names for its sources, and DATA.txt, which lists both.

    `documents` is the folder that handoff.licence_files are relative to; None: they are not at hand, and DATA.txt says
    so. Returns whose text stands in which files: `{"base": [...], source: [...]}`.
    """
    folder = bundle / "LICENSES"
    folder.mkdir()
    found: dict[str, list[str]] = {"base": []}
    for path in sorted(base.path.iterdir()):
        if path.is_file() and path.name.upper().startswith(_TEXTS):
            shutil.copyfile(path, folder / f"base-{path.name}")
            found["base"].append(f"base-{path.name}")
    lines = [f"Base model {settings.model.name}: {settings.model.licence}", f"Data as a whole: {settings.licence}", ""]
    for name, source in sorted(settings.sources.items()):
        text = settings.handoff.licence_files.get(name)
        line = f"Source {name}: {source.licence}"
        if text is not None and documents is not None:
            called = redact_key(Path(text).name, settings.prepare.redact, settings.seed)
            target = f"data-{name}-{called}"  # many a text is called LICENSE
            shutil.copyfile(documents / text, folder / target)
            found[name] = [target]
            line += f" (text: {target})"
        elif text is not None:
            line += " (text: not at hand when this bundle was made)"
        lines.append(line)
    write_whole(folder / "DATA.txt", "\n".join(lines) + "\n")
    return found


def finish(bundle: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Modes for any reader (scripts may be run), then SHA256SUMS over everything else, whose content is returned.

    Raises RecipeError where a file is not what `known` says of it. Linked weights that nobody touched are not read.
    """
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix in (".sh", ".pyz") else 0o644)
    bundle.chmod(0o755)
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    untouched = remembered(bundle.parent)
    sums = {name: untouched.get(f"{bundle.name}/{name}") or hash_file(bundle / name) for name in names}
    if changed := [name for name, digest in known.items() if sums.get(name) != digest]:
        raise RecipeError(
            Problem(str(bundle / name), None, "it changed while the bundle was made", "run the same command again")
            for name in changed
        )
    write_whole(bundle / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    (bundle / "SHA256SUMS").chmod(0o644)
    return sums


def _place(made: Artifact, folder: str, target: Path) -> dict[str, str]:
    target.mkdir()
    names = [name for name in made.manifest["files"] if name.startswith(f"{folder}/")]
    return _take(made, {name: target / Path(name).name for name in names}, target.parent)


def _take(made: Artifact, targets: Mapping[str, Path], bundle: Path) -> dict[str, str]:
    """Put files of a finished stage where `targets` says, and hold them against its manifest."""
    files, known = made.manifest["files"], {}
    for name, target in targets.items():
        path = made.path / name
        if not path.is_file():
            continue  # told below
        known[str(target.relative_to(bundle))] = files[name]
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target)
        elif _link(path, target):
            # Before it is checked: whoever touches it after that differs from what is noted.
            remember(bundle.parent, {str(target.relative_to(bundle.parent)): files[name]})
    checked(made, targets)
    return known


def _link(source: Path, target: Path) -> bool:
    """False where the file had to be copied: its bytes are then new ones."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
        return False
    return True

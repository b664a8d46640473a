"""What is placed in a bundle as it came: weights (linked), adapter, quantised models, licence texts, checksums."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.artifacts import Artifact, checked, hash_file, write_whole
from finetune.config.model import Model

if TYPE_CHECKING:
    from finetune.handoff import Config

_TEXTS = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


def place_model(checkpoint: Artifact, bundle: Path) -> dict[str, str]:
    """`model/`: weights hard-linked, the rest copied. Returns the hashes that are known: bundle path -> sha256."""
    return _place(checkpoint, "model", bundle / "model")


def place_quantised(exported: Artifact, scheme: str, bundle: Path) -> dict[str, str]:
    """`model-<scheme>/`, the same way."""
    return _place(exported, scheme, bundle / f"model-{scheme}")


def place_adapter(adapter: Artifact, model: Model, bundle: Path) -> None:
    """`adapter/` as a server loads it beside its base: named by hub id and commit, without a path of this machine."""
    folder = bundle / "adapter"
    folder.mkdir()
    _link(adapter.file("adapter_model.safetensors"), folder / "adapter_model.safetensors")
    config = json.loads(adapter.file("adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": model.name, "revision": model.revision, "inference_mode": True}
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


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
            target = f"data-{name}-{Path(text).name}"  # many a text is called LICENSE
            shutil.copyfile(documents / text, folder / target)
            found[name] = [target]
            line += f" (text: {target})"
        elif text is not None:
            line += " (text: not at hand when this bundle was made)"
        lines.append(line)
    write_whole(folder / "DATA.txt", "\n".join(lines) + "\n")
    return found


def finish(bundle: Path, known: Mapping[str, str]) -> dict[str, str]:
    """Modes for any reader (scripts may be run), then SHA256SUMS over everything else, whose content is returned."""
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix in (".sh", ".pyz") else 0o644)
    bundle.chmod(0o755)
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    sums = {name: known.get(name) or hash_file(bundle / name) for name in names}
    write_whole(bundle / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    (bundle / "SHA256SUMS").chmod(0o644)
    return sums


def _place(made: Artifact, folder: str, target: Path) -> dict[str, str]:
    target.mkdir()
    linked = []
    for path in sorted(made.file(folder).iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
        elif _link(path, target / path.name):
            linked.append(f"{folder}/{path.name}")
    return {f"{target.name}/{Path(name).name}": digest for name, digest in checked(made, linked).items()}


def _link(source: Path, target: Path) -> bool:
    """False where the file had to be copied: its bytes are then new ones."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
        return False
    return True

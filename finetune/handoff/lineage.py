"""lineage.json: where a checkpoint comes from. Digests of everything between the documents and the weights.

docs/bundle.md explains every key.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact
from finetune.memory import here

SCHEMA_VERSION = "2"
_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "deepspeed", "datasets", "bitsandbytes", "tokenizers",
    "safetensors", "numpy", "hydra-core", "wandb", "scikit-learn",
)  # fmt: skip
_MERGED = ("adapter_sha256", "base_used", "base_chosen_because", "round_trip")


def environment() -> dict[str, Any]:
    """Versions and hardware of this machine; no host name, no user, no paths."""
    found = here()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": len(os.sched_getaffinity(0)),
        "gpus": ", ".join(gpu.name for gpu in found.gpus) or None,
        "memory_gib": round(found.memory_gib),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def trace(
    config: Mapping[str, Any], *, base: Artifact, documents: Mapping[str, Mapping[str, str]],
    stages: Sequence[Artifact], merge: Mapping[str, Any], bundle: Path, golden: Mapping[str, Any],
    environment: Mapping[str, Any], quantised: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """documents -> prepared -> adapters -> checkpoint, each with its key and the digests it was made from.

    `documents` maps source -> file -> sha256; `stages` stand in the order in which they ran; model and adapter lie in
    `bundle`; `quantised` is what EXPORT says of the models that are handed over.
    """
    settings = config["model"]
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": config["name"],
        "seed": config["seed"],
        "code": {"version": _version("finetune-toolkit"), **_checkout()},
        "base": {
            "name": settings["name"], "revision": settings["revision"], "note": settings["note"],
            "licence": settings["licence"], "digest": base.digest,
        },
        "documents": {name: dict(files) for name, files in sorted(documents.items())},
        "stages": [
            {
                "stage": stage.stage, "key": stage.manifest["key"], "version": stage.manifest["version"],
                "digest": stage.digest, "inputs": dict(stage.manifest["inputs"]),
                "files": dict(stage.manifest["files"]),
            }
            for stage in stages
        ],
        "adapter": {"files": _files(bundle / "adapter", {"adapter_model.safetensors": str(merge["adapter_sha256"])})},
        "merge": {key: merge[key] for key in _MERGED} | {key: merge[key] for key in ("bases",) if key in merge},
        "checkpoint": {"files": dict(merge["files"]), "dtype": settings["dtype"]},
        "quantised": {
            scheme: {"files": dict(found["files"]), "settings": found.get("settings")}
            for scheme, found in quantised.items()
        },
        "template": {
            "file": "model/chat_template.jinja",
            "sha256": hashlib.sha256((bundle / "model/chat_template.jinja").read_bytes()).hexdigest(),
            "modes": list(settings["modes"]), "default_mode": settings["default_mode"],
        },
        "golden": dict(golden),
        "signer": config["handoff"]["signer"],
        "environment": dict(environment),
    }  # fmt: skip


def bundle_id(bundle: Path) -> str:
    """What a bundle is called by: the first 12 hex digits of the sha256 of its lineage.json."""
    return hashlib.sha256((bundle / "lineage.json").read_bytes()).hexdigest()[:12]


def _files(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    return {
        path.name: known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _checkout() -> dict[str, Any]:
    """Commit that this code runs from and whether its files differ from it; None when it was installed without one."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".")
    return {"commit": commit or None, "dirty": None if not commit or changed is None else bool(changed)}


def _git(*words: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None

"""Where a checkpoint comes from: digests of everything between the documents and the weights."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact

_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "deepspeed", "datasets", "bitsandbytes", "tokenizers",
    "safetensors", "numpy", "hydra-core", "wandb", "scikit-learn",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions and hardware of this machine; no host name, no user, no paths."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": len(os.sched_getaffinity(0)),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def trace(
    config: Mapping[str, Any], *, base: Artifact, stages: Sequence[Artifact], merge: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """lineage.json: base -> prepared -> adapters -> checkpoint, each with its key and the digests it was made from."""
    return {
        "schema_version": "1",
        "recipe": config["name"],
        "seed": config["seed"],
        "code": {"version": _version("finetune-toolkit"), "commit": _commit()},
        "base": {
            "name": config["model"]["name"], "revision": config["model"]["revision"],
            "note": config["model"]["note"], "licence": config["model"]["licence"], "digest": base.digest,
        },
        "stages": [
            {
                "stage": stage.stage, "key": stage.manifest["key"], "version": stage.manifest["version"],
                "digest": stage.digest, "inputs": dict(stage.manifest["inputs"]),
                "files": dict(stage.manifest["files"]),
            }
            for stage in stages
        ],
        "merge": {key: merge[key] for key in ("adapter_sha256", "base_used", "base_chosen_because", "round_trip")},
        "environment": dict(environment),
    }  # fmt: skip


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


def _commit() -> str | None:
    """Commit of the checkout this code runs from; None when it was installed without one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except OSError:
        return None
    return found.stdout.strip() or None

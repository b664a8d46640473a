"""What made a result: code, library versions, machine. Recorded beside each stage's output, never part of its key."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "deepspeed", "datasets", "bitsandbytes", "tokenizers",
    "safetensors", "numpy", "hydra-core", "wandb", "scikit-learn",
)  # fmt: skip


def software() -> dict[str, Any]:
    """{code: {version, commit, dirty}, python, packages}, as they are when it is called: best before the work begins.

    `dirty`: files of the toolkit differ from that commit; both are None where it was installed without a checkout.
    """
    ours = _git("ls-files", "--error-unmatch", "finetune/provenance.py") is not None  # not a repository around a venv
    commit = _git("rev-parse", "HEAD") if ours else None
    changed = _git("status", "--porcelain", "--", ".") if ours else None
    dirty = None if not commit or changed is None else bool(changed)
    return {
        "code": {"version": version_of("finetune-toolkit"), "commit": commit or None, "dirty": dirty},
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def hardware() -> dict[str, Any]:
    """{platform, cpu, threads, device, gpu, processes} of this process; best when the work is done.

    Which GPU was really used is asked of torch, where it is loaded. No host name, no user, no path.
    """
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    group = getattr(torch, "distributed", None)
    together = group is not None and group.is_available() and group.is_initialized()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": len(os.sched_getaffinity(0)),
        "device": "cuda" if used else "cpu",
        "gpu": torch.cuda.get_device_name() if torch is not None and used else None,
        "processes": group.get_world_size() if group is not None and together else 1,
    }


def version_of(package: str) -> str | None:
    """Its installed version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git(*words: str) -> str | None:
    package = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None

"""work/<recipe>/bundle always names the newest finished bundle."""

import os
from pathlib import Path

from finetune.artifacts import Artifact


def link_bundle(handoff: Artifact, work: Path) -> Path:
    """Point `work/bundle` at the bundle of this artifact and return it; readers see the old one or the new one."""
    link, fresh = work / "bundle", work / f".bundle.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path(os.path.relpath(handoff.file("bundle"), work)), target_is_directory=True)
    fresh.replace(link)
    return link

"""A finished bundle is signed, and work/<recipe>/bundle names the newest one."""

import os
from pathlib import Path

from finetune import signing
from finetune.artifacts import Artifact, checked
from finetune.errors import Problem, RecipeError


def publish(handoff: Artifact, work: Path, signing_key: str | None) -> Path:
    """Sign the bundle where a key is given and it does not carry that key's signature yet, then point `work/bundle` at
    it and return that link; readers see the old bundle or the new one. Raises RecipeError, and signs nothing, where a
    file is not what HANDOFF wrote, or one that it did not write; files untouched since then are not read again.

    The signature is no part of the stage: it differs at each signing, and a key that is given later still signs.
    """
    bundle = handoff.file("bundle")
    if signing_key is not None and not signing.signed_with(bundle, Path(signing_key)):
        digests = checked(handoff, handoff.manifest["files"])
        known = {str(Path(name).relative_to("bundle")): digest for name, digest in digests.items()}
        if strangers := sorted(set(signing.names(bundle)) - known.keys() - {signing.UNFINISHED}):
            raise RecipeError(
                Problem(str(bundle / name), None, "handoff did not write it, so it is not signed", "move it elsewhere")
                for name in strangers
            )
        signing.sign(bundle, Path(signing_key), known=known)
    link, fresh = work / "bundle", work / f".bundle.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path(os.path.relpath(bundle, work)), target_is_directory=True)
    fresh.replace(link)
    return link


def newest(work: Path) -> str | None:
    """The folder of the bundle that `work/bundle` names, None where there is none yet."""
    link = work / "bundle"
    return str(link.resolve()) if (link / "lineage.json").is_file() else None

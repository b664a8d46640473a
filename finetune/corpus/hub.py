"""Files of a dataset on a Hugging Face hub, at one commit, through the hub's own client. No code of it is ever run."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune.config.data import Hub
from finetune.corpus.streams import SourceFile
from finetune.errors import RecipeError


def find_hub_files(name: str, wanted: Hub, *, fetch: bool) -> list[SourceFile]:
    """The files that `wanted.files` match, sorted, called DATASET/PATH; downloaded where they are not in the cache.

    With a filled cache (HF_HOME) no network is needed. Without `fetch` nothing is downloaded. Raises RecipeError.
    """
    folder = _snapshot(name, wanted, fetch=fetch)
    held = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = [path for path in held if any(fnmatchcase(path, pattern) for pattern in wanted.files)]
    if not found:
        rule = f"no file of {wanted.dataset} at this commit matches"
        raise RecipeError.one(f"sources.{name}.hub.files", list(wanted.files), rule, "look at the dataset's file list")
    return [SourceFile(f"{wanted.dataset}/{path}", folder / path) for path in found]


def _snapshot(name: str, wanted: Hub, *, fetch: bool) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    asked: dict[str, Any] = {
        "repo_id": wanted.dataset, "repo_type": "dataset", "revision": wanted.revision,
        "allow_patterns": list(wanted.files),
    }  # fmt: skip
    try:
        try:
            return Path(snapshot_download(**asked, local_files_only=True))
        except LocalEntryNotFoundError:
            if not fetch:
                raise
        return Path(snapshot_download(**asked))
    except (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        HfHubHTTPError,
        HFValidationError,
        httpx2.HTTPError,
        OSError,
    ) as error:
        includes = " ".join(f"--include '{pattern}'" for pattern in wanted.files)
        raise RecipeError.one(
            f"sources.{name}.hub.dataset",
            wanted.dataset,
            f"its files are not on this machine and cannot be fetched ({type(error).__name__})",
            "download them once where there is a network: "
            f"`hf download {wanted.dataset} --repo-type dataset --revision {wanted.revision} {includes}`",
        ) from error

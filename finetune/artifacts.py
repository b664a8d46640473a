"""Stage, Artifact, build(): the only caching code.

A stage's key is a hash of its name, version, the config that changes its result and the digests of its inputs. Work
happens in `<stage>-<key>.partial`; the manifest is written last, a rename publishes. A directory without `.partial`
in its name is therefore always complete, whatever instant the process was killed at.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import provenance
from finetune.errors import RecipeError

MANIFEST = "manifest.json"
_HASHED = ".hashed.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Stage:
    """A named, versioned function `(config, *, out, **inputs) -> facts`.

    Raise `version` whenever the bytes of the output change for the same config and inputs: a golden test holds it.
    """

    name: str
    version: int
    run: Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Artifact:
    """A finished stage output: a directory and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of the output files: what downstream keys depend on."""
        return str(self.manifest["digest"])

    @property
    def facts(self) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    def file(self, name: str) -> Path:
        path = self.path / name
        assert path.exists(), f"{self.stage} artifact has no {name}"
        return path


def stage_key(stage: Stage, config: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
    """16 hex digits naming one result: same key, same bytes."""
    identity = {
        "stage": stage.name,
        "version": stage.version,
        "config": config,
        "inputs": {name: artifact.digest for name, artifact in sorted(inputs.items())},
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def find(stage: Stage, config: Mapping[str, Any], *, root: Path, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """The published artifact of this key, or None. Never looks at `.partial` directories."""
    path = root / f"{stage.name}-{stage_key(stage, config, inputs)}"
    return read(path) if path.is_dir() else None


def read(path: Path) -> Artifact:
    """Read a published artifact; a missing or torn manifest is an error naming what to delete."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise RecipeError.one(
            str(path / MANIFEST),
            None,
            f"the manifest of this finished stage cannot be read ({error})",
            f"it was changed by hand; remove {path} and run the same command again",
        ) from error
    return Artifact(path, manifest)


def build(
    stage: Stage,
    config: Mapping[str, Any],
    *,
    root: Path,
    inputs: Mapping[str, Artifact],
    say: Callable[[str], None] = print,
    **live: Any,
) -> Artifact:
    """Return the artifact of this key, doing the work only when it is not already there.

    `live` holds what the stage function needs and what is not its identity (thread counts, a tracker, the machine).
    """
    found = find(stage, config, root=root, inputs=inputs)
    if found is not None:
        say(f"{stage.name}: already done ({found.path.name})")
        return found
    key = stage_key(stage, config, inputs)
    final, partial = root / f"{stage.name}-{key}", root / f"{stage.name}-{key}.partial"
    say(f"{stage.name}: {'going on with' if partial.is_dir() else 'starting'} {final.name}")
    began = time.monotonic()
    software = provenance.software()
    with explained(root):
        partial.mkdir(parents=True, exist_ok=True)
        facts = stage.run(config, out=partial, **inputs, **live)
        publish(
            partial,
            final,
            stage=stage,
            key=key,
            config=config,
            inputs=inputs,
            facts=facts,
            seconds=time.monotonic() - began,
            made={**software, **provenance.hardware()},
        )
    return read(final)


def publish(
    partial: Path,
    final: Path,
    *,
    stage: Stage,
    key: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    facts: Mapping[str, Any],
    seconds: float,
    made: Mapping[str, Any],
) -> None:
    """Hash the files, write the manifest last, rename. After a kill before the rename nothing is published.

    `seconds` and `made` (finetune.provenance) are those of the attempt that finished: of killed ones nothing is known.
    Neither is part of the key or of the digest, and a manifest from before `made` was recorded lacks it.
    """
    known = remembered(partial)
    names = [str(path.relative_to(partial)) for path in walk(partial)]
    files = {name: known.get(name) or hash_file(partial / name) for name in names}
    remember(partial, files)
    manifest = {
        "stage": stage.name,
        "version": stage.version,
        "key": key,
        "config": config,
        "inputs": {name: artifact.digest for name, artifact in sorted(inputs.items())},
        "files": files,
        "digest": hashlib.sha256(canonical_json(files).encode()).hexdigest(),
        "facts": facts,
        "seconds": round(seconds, 2),
        "made": made,
    }
    write_whole(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True))
    partial.replace(final)
    sync_directory(final.parent)


def remember(folder: Path, digests: Mapping[str, str]) -> None:
    """Note the sha256 of files below `folder` (name -> digest) that was made while they were written or read, so that
    65 GB are not read again only to know it. A file counts as the same while size, time of change and inode are."""
    noted = _noted(folder) | {name: [digest, *_seen(folder / name)] for name, digest in digests.items()}
    write_whole(folder / _HASHED, json.dumps(noted))


def remembered(folder: Path) -> dict[str, str]:
    """name -> sha256 of the files that `remember` was told of and that have not been touched since."""
    return {
        name: digest for name, (digest, *seen) in _noted(folder).items()
        if (folder / name).is_file() and seen == _seen(folder / name)
    }  # fmt: skip


def checked(artifact: Artifact, names: Iterable[str]) -> dict[str, str]:
    """name -> sha256 of files of a finished stage, read only where one was touched since, or copied.

    Raises RecipeError where the bytes are not those of the manifest.
    """
    known, files, found = remembered(artifact.path), artifact.manifest["files"], {}
    for name in names:
        path = artifact.path / name
        found[name] = known.get(name) or (hash_file(path) if path.is_file() else "missing")
        if found[name] != files[name]:
            raise RecipeError.one(
                str(path), None, f"its bytes are not those that {artifact.stage} wrote",
                f"it was changed by hand; remove {artifact.path} and run the same command again",
            )  # fmt: skip
    return found


def _noted(folder: Path) -> dict[str, list[Any]]:
    """What `remember` wrote; nothing where it wrote nothing or another hand did."""
    try:
        found = json.loads((folder / _HASHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _seen(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def walk(root: Path) -> Iterator[Path]:
    """All files below root, sorted, except the manifest and hidden working files (`.name`)."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and relative != Path(MANIFEST) and not any(p.startswith(".") for p in relative.parts):
            yield path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a torn one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def canonical_json(value: Any) -> str:
    """One spelling for one value, so that equal values hash equally. Unknown types are our bug, not a silent str()."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def clear(directory: Path, *, but: Container[str] = ()) -> None:
    """Empty a stage's partial directory before a fresh start, `but` for what is called so."""
    for child in directory.iterdir():
        if child.name in but:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class explained:  # noqa: N801 (reads as a statement: `with explained(root):`)
    """Turn what the system refuses below `root` (a full disk, a folder that is not ours) into a RecipeError."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, RecipeError):
            return
        if _says_full(error):
            root = self.root
            free = shutil.disk_usage(root if root.exists() else root.parent).free
            raise RecipeError.one(
                "work",
                str(root),
                f"the disk is full ({free / 1e9:.2f} GB free)",
                "free some space or set work= to another disk, then run the same command: it goes on where it stopped",
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RecipeError.one(
                "work",
                str(error.filename or self.root),
                "this path cannot be written by you",
                "set work= to a folder you may write to",
            ) from error


def _says_full(error: BaseException | None) -> bool:
    """safetensors and torch report a full disk with classes of their own: only their words tell it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in ("no space left on device", "os error 28", "enospc")):
            return True
        error = error.__cause__ or error.__context__
    return False

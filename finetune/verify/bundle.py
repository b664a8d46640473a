"""A bundle: its models, its adapter, and its papers, complete and unchanged."""

import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.errors import RecipeError
from finetune.findings import Finding, finding, named
from finetune.shards import Tensor, read_header
from finetune.verify import weights

SUMS, SIGNATURE = "SHA256SUMS", "model.sig"
PAPERS = (
    "README.md", "report.json", "report.html", "REPORT.md", "lineage.json", "config.yaml", "bom.cdx.json",
    "golden.jsonl", "ROLLBACK.md", "verify.pyz", "serve/README.md", "serve/plan.json", "serve/alerts.yml",
    "serve/alerts_test.yml", SUMS,
)  # fmt: skip
_NO_PICKLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
_RUNS = (".sh", ".pyz")
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)\n")


def models(directory: Path) -> list[Path]:
    """`model/` and its quantised siblings `model-*/`."""
    return [directory / "model", *sorted(path for path in directory.glob("model-*") if path.is_dir())]


def check(directory: Path) -> Iterator[Finding]:
    """What is missing, what is there and must not be, and whether SHA256SUMS knows every file."""
    for name in PAPERS:
        if not (directory / name).is_file():
            yield finding("missing-paper", directory / name, None, "a bundle holds this file, this one does not",
                          "copy the bundle again")  # fmt: skip
    yield from _strangers(directory)
    if (directory / SUMS).is_file():
        listed, wrong = read_sums(directory / SUMS)
        yield from wrong
        present = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
        present -= {SUMS, SIGNATURE}
        for name in sorted(present - listed.keys()):
            yield finding("unlisted-file", directory / name, None, f"not listed in {SUMS}: it came after the bundle",
                          "remove it")  # fmt: skip
        for name in sorted(listed.keys() - present):
            yield finding("missing-file", directory / name, None, f"listed in {SUMS} and not there",
                          "copy the bundle again")  # fmt: skip


def compare(directory: Path, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Bytes (`digests`: name -> sha256, as read) against SHA256SUMS."""
    if not (directory / SUMS).is_file():
        return
    listed, _ = read_sums(directory / SUMS)
    for name in sorted(listed.keys() & digests.keys()):
        if digests[name] != listed[name]:
            yield finding("changed-bytes", directory / name, None, f"its bytes are not those of {SUMS}",
                          "copy the file again")  # fmt: skip


def read_sums(file: Path) -> tuple[dict[str, str], list[Finding]]:
    """Relative path -> sha256, as sha256sum writes it; and what is not as HANDOFF writes it, to the byte."""
    text = file.read_bytes().decode("utf-8", "replace")
    lines = _LINE.findall(text)
    listed = {name: digest for digest, name in lines}
    if "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)) == text:
        return listed, []
    rule = "not as it was written: one `sha256  name` a line, names sorted, nothing else"
    return listed, [finding("sums-format", file, None, rule, "copy the bundle again")]


def check_adapter(directory: Path, findings: list[Finding]) -> dict[str, Tensor]:
    """The adapter's tensors; it must be readable, gathered, and name its base without a path."""
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = read_header(directory / "adapter_model.safetensors")
    except (OSError, ValueError, RecursionError) as error:
        findings.append(finding("adapter-unreadable", directory, None, f"the adapter cannot be read ({error})",
                                "copy the bundle again"))  # fmt: skip
        return {}
    except RecipeError as error:
        findings += (named("adapter-unreadable", problem) for problem in error.problems)
        return {}
    findings += weights.check_layout(directory / "adapter_model.safetensors", list(tensors.values()))
    if not tensors or any(not tensor.bytes for tensor in tensors.values()):
        findings.append(finding("adapter-empty", directory, None, "the adapter has empty tensors", "save it gathered"))
    base = str(config.get("base_model_name_or_path")) if isinstance(config, dict) else "."
    if base.startswith(("/", ".", "~")):
        findings.append(finding("local-path", directory / "adapter_config.json", base,
                                "a path of the machine that trained it", "write the base model's name"))  # fmt: skip
    return tensors


def _strangers(directory: Path) -> Iterator[Finding]:
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield finding("link", path, None, "a link, which a copy of the bundle would lose", "copy the file itself")
        elif stat.S_ISDIR(mode):
            if not any(path.iterdir()):
                yield finding("unlisted-file", path, None, "an empty folder: a bundle has none", "remove it")
            elif mode & 0o055 != 0o055:
                yield finding("private-file", path, oct(mode & 0o7777), "only its owner may look into it",
                              f"chmod 755 {path.name}")  # fmt: skip
        elif not stat.S_ISREG(mode):
            yield finding("special-file", path, oct(mode), "a pipe, socket or device: neither file nor folder",
                          "remove it")  # fmt: skip
        elif path.suffix in _NO_PICKLE:
            yield finding("pickle", path, None, "a bundle holds no pickle or array file: loading one runs code",
                          "remove it")  # fmt: skip
        elif path.parent.name not in {folder.name for folder in models(directory)} and mode & 0o044 != 0o044:
            yield finding("private-file", path, oct(mode & 0o7777), "only its owner may read it",
                          f"chmod 644 {path.name}")  # fmt: skip
        if not stat.S_ISLNK(mode) and mode & 0o7002:
            yield finding("open-mode", path, oct(mode & 0o7777), "anybody may change it, or it runs as somebody else",
                          f"chmod {'755' if stat.S_ISDIR(mode) else '644'} {path.name}")  # fmt: skip
        elif stat.S_ISREG(mode) and mode & 0o111 and path.suffix not in _RUNS:
            yield finding("runnable-file", path, oct(mode & 0o7777), "only the scripts of a bundle are programs",
                          f"chmod 644 {path.name}")  # fmt: skip

"""`finetune report WORK`: the report of a finished run once more, from the stored rows and artifacts alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, explained, hash_file, read, write_whole
from finetune.errors import Problem, RecipeError
from finetune.report import facts, markdown, page

FILES = ("report.json", "report.html", "REPORT.md")
READ = {
    "prepare": ("test.jsonl", "ledger.json", "rejects.jsonl"), "score": ("answers.jsonl", "scores.json"),
    "proof": ("parity.json",), "export": ("export.json",),
}  # fmt: skip
"""Stage -> its files that a report is made from."""
_TRAINING = ("log.jsonl",)
REFUSED = "handoff-*.partial/report/report.json"
"""Below a work folder: the reports of bundles that a gate refused."""


def run(work: Path, out: Path | None, language: str | None) -> int:
    """0 where the bytes are those that the run wrote (or another language was asked for), 1 where they are not."""
    out = out or work / "report"
    old, made = again(work, language)
    newest = "the bundle's" if old == work / "bundle" else "of a bundle that was refused"
    print(f"report: the newest one here, {newest} ({old / 'report.json'})")
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write(out, made)
    same = [(out / name).read_bytes() == (old / name).read_bytes() for name in FILES]
    for name, equal in zip(FILES, same, strict=True):
        said = f": {'the same bytes as' if equal else 'differs from'} {old / name}"
        print(f"{out / name}{'' if language else said}")
    if not language and not all(same):
        print("another version of the toolkit than the one that made the run may word or draw some things differently")
    return 0 if language or all(same) else 1


def write(folder: Path, made: Mapping[str, Any]) -> None:
    """report.json, report.html and REPORT.md into `folder`."""
    write_whole(folder / "report.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "report.html", page.render(made))
    write_whole(folder / "REPORT.md", markdown.render(made))


def again(work: Path, language: str | None = None) -> tuple[Path, dict[str, Any]]:
    """(folder of the report that the run wrote, report.json made anew).

    Numbers and texts come out of the stage folders, whose bytes are held against their manifests. What stands in none
    of them (the recipe, what was typed, the environment, digests of the documents) is taken from the old report.json.
    Raises RecipeError for a stage that is gone or was changed.
    """
    old = find(work)
    saved = json.loads((old / "report.json").read_text(encoding="utf-8"))
    if "documents" not in saved:
        raise RecipeError.one(
            "report", str(old / "report.json"), "an older version made it, which did not record all it was made of",
            "run the same command again",
        )  # fmt: skip
    stages = [_stage(work, entry) for entry in saved["lineage"]]
    named = {stage.stage: stage for stage in stages}
    recipe = saved["config"] | ({"language": language} if language else {})
    made = facts.collect(
        recipe, base_digest=saved["model"]["digest"], prepared=named["prepare"],
        adapters=[named[name] for name in recipe["stages"]], scores=named["score"], proof=named["proof"],
        exported=named.get("export"), stages=stages, command=saved["command"], environment=saved["environment"],
        documents=saved["documents"], latency=saved.get("latency"),
    )  # fmt: skip
    return old, made


def find(work: Path) -> Path:
    """Folder of the newest report below a work folder: the bundle's, or the one left where a gate refused it.

    A bundle is as old as its link, which every run that ends in it sets anew.
    """
    aged = [(file.stat().st_mtime_ns, str(file), file.parent) for file in work.glob(REFUSED)]
    link = work / "bundle"
    if (link / "report.json").is_file():
        made = (link if link.is_symlink() else link / "report.json").lstat().st_mtime_ns
        aged.append((made, "", link))  # of the same instant: the refusal, which claims less
    if not aged:
        raise RecipeError.one("report", str(work), "no finished run is here", "finetune report work/legal")
    return max(aged)[-1]


def _stage(work: Path, entry: Mapping[str, Any]) -> Artifact:
    folder = work / f"{entry['stage']}-{entry['key']}"
    if not folder.is_dir():
        raise RecipeError.one(
            "report", str(folder), "this stage is gone, and the report is made from it", "run the same command again"
        )
    stage = read(folder)
    problems = list(_changed(stage, entry))
    if problems:
        raise RecipeError(problems)
    return stage


def _changed(stage: Artifact, entry: Mapping[str, Any]) -> Iterator[Problem]:
    mend = f"it was changed after the run; remove {stage.path} and run the same command again"
    if stage.digest != entry["digest"]:
        yield Problem("report", str(stage.path), "its digest is not the one that the report names", mend)
    for name in READ.get(stage.stage, _TRAINING if (stage.path / _TRAINING[0]).is_file() else ()):
        if hash_file(stage.file(name)) != stage.manifest["files"][name]:
            yield Problem("report", str(stage.path / name), "its sha256 is not the one in the manifest", mend)

"""`finetune report`: the same bytes from the same stored rows, and nothing from rows that were changed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.errors import RecipeError
from finetune.report import rebuild
from tests.report.test_facts import collect


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder with finished stages and a bundle that holds the report made of them."""
    facts = collect(tmp_path, "redacted")
    (tmp_path / "bundle").mkdir()
    rebuild.write(tmp_path / "bundle", facts)
    return tmp_path


def test_the_report_is_made_again_with_the_same_bytes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(work)]) == 0
    assert capsys.readouterr().out.count("the same bytes as") == 3
    for name in rebuild.FILES:
        assert (work / "report" / name).read_bytes() == (work / "bundle" / name).read_bytes()


def test_other_bytes_are_said_and_the_exit_code_tells_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = work / "bundle" / "report.html"
    page.write_text(page.read_text().replace("Questions", "Other questions"))
    assert main(["report", str(work), "--out", str(work / "again")]) == 1
    assert f"report.html: differs from {page}" in capsys.readouterr().out


def test_another_language_says_the_same_numbers(work: Path) -> None:
    assert main(["report", str(work), "--language", "zh"]) == 0
    english, chinese = (json.loads((work / folder / "report.json").read_text()) for folder in ("bundle", "report"))
    assert (english["language"], chinese["language"]) == ("en", "zh")
    assert english["tasks"] == chinese["tasks"]
    assert 'lang="zh-CN"' in (work / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    "name", ["answers.jsonl", "scores.json", "parity.json", "log.jsonl", "ledger.json", "test.jsonl"]
)
def test_rows_that_were_changed_after_the_run_make_no_report(work: Path, name: str) -> None:
    file = next(work.glob(f"*/{name}"))
    file.write_text(file.read_text() + " ")
    with pytest.raises(RecipeError, match="sha256 is not the one in the manifest") as caught:
        rebuild.again(work)
    assert str(file) in str(caught.value)


def test_a_stage_that_is_gone_or_is_no_run_at_all_is_said(work: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shutil.rmtree(next(work.glob("score-*")))
    with pytest.raises(RecipeError, match="this stage is gone"):
        rebuild.again(work)
    with pytest.raises(RecipeError, match="no finished run is here"):
        rebuild.again(tmp_path_factory.mktemp("empty"))


def test_the_report_of_an_older_version_is_said_to_be_one(work: Path) -> None:
    file = work / "bundle" / "report.json"
    facts = json.loads(file.read_text())
    del facts["documents"]
    file.write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match="an older version made it"):
        rebuild.again(work)


def test_the_report_that_a_gate_left_behind_is_found(work: Path) -> None:
    left = work / "handoff-0123456789abcdef.partial" / "report"
    left.parent.mkdir()
    (work / "bundle").rename(left)
    assert rebuild.again(work)[0] == left


def test_the_newest_report_is_taken_be_it_the_bundles_or_that_of_a_later_refusal(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run that failed its gate was once reported as the pass of the first."""
    made, link = work / "handoff-1" / "bundle", work / "bundle"
    made.parent.mkdir()
    link.rename(made)
    link.symlink_to("handoff-1/bundle")
    left = [shutil.copytree(made, work / f"handoff-{key}.partial" / "report") for key in ("2", "3")]

    def newest(*ages: int) -> Path:
        for path, age in zip((link, *(folder / "report.json" for folder in left)), ages, strict=True):
            os.utime(path, ns=(age, age), follow_symlinks=False)
        return rebuild.find(work)

    assert newest(1, 2, 3) == left[1]
    assert newest(1, 3, 2) == left[0]
    assert newest(2, 2, 1) == left[0], "of the same instant it is the one that claims less"
    assert main(["report", str(work)]) == 0
    assert f"of a bundle that was refused ({left[0] / 'report.json'})" in capsys.readouterr().out
    assert newest(3, 2, 1) == link, "the first recipe ran once more, and its bundle was published again"

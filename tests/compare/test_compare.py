"""finetune compare: the keys that differ and no others, intervals on shared rows only, no text that privacy forbids."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.compare.differences import compare, labels
from finetune.compare.page import render
from finetune.compare.reading import flat, read
from finetune.compare.terminal import show, spark
from finetune.errors import RecipeError
from finetune.score.statistics import paired_difference
from tests.compare import made


def two(tmp_path: Path, **changes: object) -> tuple[Path, Path]:
    return made.run(tmp_path / "one"), made.run(tmp_path / "two", **changes)  # type: ignore[arg-type]


def test_only_the_keys_that_differ_are_named(tmp_path: Path) -> None:
    one, other = two(tmp_path, lr=0.002)
    found = compare([read(str(one)), read(str(other))])["config"]
    assert found == {"differs": {"sft.trl.learning_rate": [0.001, 0.002]}, "same": 7, "not_compared": []}
    alike = compare([read(str(one)), read(str(one))])["config"]
    assert alike["differs"] == {}


def test_the_difference_is_the_paired_one_of_the_same_rows(tmp_path: Path) -> None:
    one, other = two(tmp_path, wrong=8)
    (pair,) = compare([read(str(one)), read(str(other))])["metrics"][0]["pairs"]
    groups = [group for _, group in made.ROWS]
    first, second = ([float(number >= wrong) for number in range(80)] for wrong in (20, 8))
    wanted = paired_difference(second, first, groups)
    assert (pair["difference"], tuple(pair["ci95"]), pair["groups"]) == (12 / 80, wanted.ci95, 40)
    assert (pair["shared"], pair["only_first"], pair["only_other"], pair["refused"]) == (80, 0, 0, None)


def test_rows_with_other_gold_answers_are_never_paired(tmp_path: Path) -> None:
    one, other = two(tmp_path, gold="pump")
    facts = compare([read(str(one)), read(str(other))])
    (pair,) = facts["metrics"][0]["pairs"]
    assert pair["difference"] is None
    assert pair["different_gold"] == 80
    assert pair["refused"] == "80 rows of the same id have different gold answers"
    assert facts["answers"] == []
    assert facts["findings"] == [f"B cannot be held against A on Spare parts: {pair['refused']}."]


def test_runs_that_share_some_rows_are_paired_on_those(tmp_path: Path) -> None:
    one, other = two(tmp_path, wrong=8)
    file = other / "score-1" / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    made.lines(file, [row for row in rows if int(row["id"][7:]) < 60])
    (pair,) = compare([read(str(one)), read(str(other))])["metrics"][0]["pairs"]
    assert (pair["shared"], pair["only_first"], pair["only_other"]) == (60, 20, 0)
    assert pair["difference"] == 12 / 60


def test_shared_rows_asked_with_another_prompt_are_kept_and_counted(tmp_path: Path) -> None:
    """Another chat template, another edition of the document: the difference may be the prompt's."""
    one, other = two(tmp_path, wrong=8, reworded=12)
    facts = compare([read(str(one)), read(str(other))])
    (pair,) = facts["metrics"][0]["pairs"]
    assert (pair["shared"], pair["different_prompt"], pair["difference"]) == (80, 12, 12 / 80)
    out = io.StringIO()
    show(facts, out)
    for said in (facts["findings"][0], " ".join(out.getvalue().split()), render(facts)):
        assert re.search("80 shared rows.{0,15}, 12 asked with another prompt", said)
    same = compare([read(str(one)), read(str(one))])
    assert same["metrics"][0]["pairs"][0]["different_prompt"] == 0
    assert "prompt" not in same["findings"][0]


def test_changed_answers_are_counted_and_shown_as_the_stricter_privacy_allows(tmp_path: Path) -> None:
    one = made.run(tmp_path / "one", privacy="full")
    for privacy in ("full", "redacted", "none"):
        other = made.run(tmp_path / privacy, wrong=8, privacy=privacy)
        facts = compare([read(str(one)), read(str(other))])
        (entry,) = facts["answers"]
        assert facts["privacy"] == privacy
        counts = {name: entry[name] for name in ("shared", "changed", "gained", "lost", "even")}
        assert counts == {"shared": 80, "changed": 12, "gained": 12, "lost": 0, "even": 0}
        text = json.dumps(facts)
        assert ("me@firm.example" in text) == (privacy == "full")
        assert ("[EMAIL_1]" in text) == (privacy == "redacted")
        assert ("parts/r8" in text) == (privacy == "full"), "an id may be a column of the documents"
        assert len(entry["rows"]) == (0 if privacy == "none" else 12)


def test_data_curves_gates_and_cost_stand_side_by_side(tmp_path: Path) -> None:
    one, other = two(tmp_path, price=3.0)
    facts = compare([read(str(one)), read(str(other))])
    assert facts["data"]["digests"]["documents"] == ["documents-digest"] * 2
    assert facts["data"]["splits"] == {"rows/train": [200, 200], "rows/test": [80, 80]}
    assert facts["data"]["counts"] == {}, "only what differs"
    assert [len(rows) for rows in facts["curves"]["sft"]] == [4, 4]
    assert facts["gates"]["latency_p95_max"] == [{"status": "not_measured", "value": None, "limit": 1.2}] * 2
    assert facts["cost"]["seconds_total"] == [40.0, 40.0]
    assert facts["cost"]["usd_total"] == [None, pytest.approx(40 / 3600 * 3.0 * 2)]


def test_a_folder_with_two_runs_means_the_one_that_finished_last(tmp_path: Path) -> None:
    work = made.run(tmp_path / "work", key="1")
    made.run(work, key="2", lr=0.5)
    assert read(str(work)).config["sft.trl.learning_rate"] == 0.5
    (work / "bundle").unlink()
    (work / "bundle").symlink_to("handoff-1/bundle")  # the first recipe again: all done, its bundle published once more
    assert read(str(work)).config["sft.trl.learning_rate"] == 0.001


def test_a_run_that_did_not_reach_its_bundle_is_compared_by_what_it_has(tmp_path: Path) -> None:
    one, other = two(tmp_path, lr=0.002, bundle=False)
    facts = compare([read(str(one)), read(str(other))])
    assert facts["config"]["differs"] == {"sft.trl.learning_rate": [0.001, 0.002]}
    assert facts["config"]["not_compared"] == ["machine", "model", "name", "privacy", "tasks"]
    assert facts["metrics"][0]["pairs"][0]["difference"] == 0.0
    assert facts["gates"]["gain_above"][1] is None
    assert facts["privacy"] == "none", "what a run does not say of privacy is not taken for consent"


def test_gates_that_stopped_a_handoff_are_read_where_it_left_them(tmp_path: Path) -> None:
    work = made.run(tmp_path / "work", bundle=False)
    papers = work / "handoff-9.partial" / "report"
    papers.mkdir(parents=True)
    gate = {"name": "gain_above", "value": -0.1, "limit": 0.0, "status": "fail"}
    (papers / "report.json").write_text(json.dumps({"gates": [gate], "lineage": [{"digest": "score-1-digest"}]}))
    assert read(str(work)).gates == {"gain_above": {"status": "fail", "value": -0.1, "limit": 0.0}}
    for key, age in (("1", 2), ("8", 3), ("95", 1)):  # of several attempts the newest, whatever it is called
        again = work / f"handoff-{key}.partial" / "report" / "report.json"
        again.parent.mkdir(parents=True)
        gates = [{**gate, "value": float(age)}]
        again.write_text(json.dumps({"gates": gates, "lineage": [{"digest": "score-1-digest"}]}))
        os.utime(again, ns=(age, age))
    os.utime(papers / "report.json", ns=(0, 0))
    assert read(str(work)).gates["gain_above"]["value"] == 3.0


def test_the_terminal_shows_every_part_and_no_control_character(tmp_path: Path) -> None:
    runs = [
        read(str(made.run(tmp_path / name, privacy="full", **changes)))  # type: ignore[arg-type]
        for name, changes in (("one", {}), ("two", {"wrong": 8, "lr": 0.002}), ("three", {"gold": "\x1b[2Jhose"}))
    ]
    out = io.StringIO()
    show(compare(runs), out)
    said = out.getvalue()
    assert "\x1b" not in said
    assert "Spare parts (parts, main)" in said
    for part in ("sft.trl.learning_rate", "+0.150 [", "80 shared rows", "12 of 80", "not measured", "all stages"):
        assert part in said, part
    assert "me@firm.example" in said


def test_a_curve_is_drawn_on_a_scale_that_it_shares() -> None:
    assert spark([1.0, 0.5, 0.0], 0.0, 2.0) == "▅▃▁"
    assert len(spark([1.0] * 1000, 0.0, 1.0)) <= 40
    assert labels(28)[-2:] == ["AA", "AB"]


def test_names_that_are_no_run_are_refused_with_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (str(tmp_path), str(tmp_path / "nothing"), "just-a-word"):
        with pytest.raises(RecipeError, match="neither a work folder"):
            read(name)
    assert main(["compare", str(made.run(tmp_path / "one"))]) == 2
    assert "is one run: name two or more" in capsys.readouterr().err


def test_a_run_on_a_server_that_cannot_be_asked_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(RecipeError, match=r"cannot be read from W&B .*: go online and `wandb login`"):
        read("me/finetune/abc12345")


def test_the_command_needs_no_torch_and_no_wandb_for_work_folders(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    script = (
        "import sys\nfrom finetune.cli import main\n"
        f"assert main(['compare', {str(one)!r}, {str(other)!r}, '--json']) == 0\n"
        "assert not {'torch', 'wandb', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["schema_version"] == "1"


def test_flat_keeps_lists_and_empty_sections_as_values() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [{"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [{"e": 2}]}

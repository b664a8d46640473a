"""What W&B is told: enough to compare runs by, no secret, no passage of the documents; and never at training's cost."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from finetune import tracking
from finetune.artifacts import Artifact
from finetune.compare.differences import compare
from finetune.compare.reading import flat, read
from finetune.config import Recipe, load
from finetune.tracking import Tracker, told
from finetune.tracking.records import Decoded, decode
from tests.handmade import as_artifact, make_prepared

WORDS = ["recipe=maintenance", "model=smollm2_135m", "tracking=offline"]
SECRETS = ["hf_" + "a1B2" * 10, "s3cretsig", "hunter22", "q9-token"]


@pytest.fixture(autouse=True)
def _no_mode_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def with_inputs(artifact: Artifact, **inputs: str) -> Artifact:
    return Artifact(artifact.path, {**artifact.manifest, "inputs": inputs, "seconds": 1.5, "files": {"f": "a" * 64}})


@pytest.fixture
def base(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "base", {"stage": "base", "digest": "b" * 64, "facts": {}})


@pytest.fixture
def prepared(tmp_path: Path) -> Artifact:
    (tmp_path / "prepare-1").mkdir()
    made = make_prepared(tmp_path / "prepare-1")
    ledger = [{"step": "cap", "source": s, "rows_in": 9, "rows_out": 7, "dropped": {"over test_rows": 2}} for s in "ab"]
    made.file("general.jsonl").with_name("ledger.json").write_text(json.dumps(ledger))
    counted = as_artifact(made.path, "prepare", rows={"train": 24, "test": 12})
    return with_inputs(counted, documents="d" * 64, base="b" * 64)


@pytest.fixture
def scores(tmp_path: Path, prepared: Artifact) -> Artifact:
    """Answers that repeat the prompt, as an untrained model does, and one that tells an address."""
    folder = tmp_path / "score-1"
    folder.mkdir()
    lines = []
    for row in map(json.loads, prepared.file("test.jsonl").read_text().splitlines()):
        prompt, gold = (row["messages"][at]["content"] for at in (-2, -1))
        repeated = f"You said: {prompt.upper()} Write to a@firm.example."
        for system, answer in (("base_few_shot", repeated), ("tuned", gold)):
            lines.append({"task": "thing", "id": row["id"], "group": row["group"], "system": system, "answer": answer,
                          "score": float(answer == gold), "gold": gold, "finished": True})  # fmt: skip
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    task = {"name": "thing", "title": "Thing", "metric": "exact_match", "main": True, "n": 24, "tuned": 1.0,
            "base_few_shot": 0.0, "difference": 1.0, "ci95": [0.5, 1.0], "against": "base_few_shot"}  # fmt: skip
    general = {"perplexity_base": {"speech": 10.0}, "perplexity_tuned": {"speech": 11.0}, "change": {"speech": 0.1}}
    (folder / "scores.json").write_text(json.dumps({"tasks": [task], "general": general}))
    return with_inputs(as_artifact(folder, "score", answers=48), adapter="c" * 64)


@pytest.fixture
def proof(tmp_path: Path) -> Artifact:
    folder = tmp_path / "proof-1"
    folder.mkdir()
    (folder / "parity.json").write_text(json.dumps({"kl_mean": 0.0}))
    return with_inputs(as_artifact(folder, "proof"), adapter="c" * 64)


def recipe(work: Path, *words: str) -> Recipe:
    work.mkdir(exist_ok=True)
    return load([*WORDS, f"work={work}", *words])


def follow(made: Recipe, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact) -> Decoded:
    work = Path(made.work)
    with Tracker.open(made, work, prepared.digest, say=pytest.fail) as tracker:
        tracker.follow(prepared)
        for step in range(1, 6):
            tracker.log("sft", {"loss": 1.0 / step, "lr": 1e-3}, step)
        tracker.follow(scores, proof)
        tracker.conclude(made, base=base, prepared=prepared, scores=scores, proof=proof)
    return decode(files(work))


def files(work: Path) -> list[Path]:
    return sorted(work.glob("wandb/*run-*/*.wandb"))


def test_two_runs_have_the_same_metrics_and_differ_in_the_keys_that_were_changed(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    given = (base, prepared, scores, proof)
    one = follow(recipe(tmp_path / "one"), *given)
    other = follow(recipe(tmp_path / "two", "sft.trl.learning_rate=0.5", "method.lora.r=4"), *given)
    assert one.id != other.id
    assert one.group == other.group == "maintenance"
    for run in (one, other):
        assert {name for line in run.history.values() for name in line} == {
            "sft/loss", "sft/lr", "sft/step", "score/samples",
        }  # fmt: skip
    assert set(one.summary) == set(other.summary)
    before, after = flat(one.config), flat(other.config)
    assert set(before) == set(after)
    assert {key for key in before if before[key] != after[key]} == {"sft.trl.learning_rate", "method.lora.r"}


def test_offline_runs_are_compared_by_their_files_alone(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    for name, words in (("one", ()), ("two", ("sft.trl.learning_rate=0.5",))):
        follow(recipe(tmp_path / name, *words), base, prepared, scores, proof)
    (one,), (other,) = (files(tmp_path / name) for name in ("one", "two"))
    facts = compare([read(str(one)), read(str(other.parent))])
    assert facts["config"]["differs"] == {"sft.trl.learning_rate": [0.001, 0.5]}
    assert facts["data"]["digests"]["documents"] == ["d" * 64] * 2
    assert facts["data"]["splits"] == {"rows/train": [24, 24], "rows/test": [12, 12]}
    assert [row["step"] for row in facts["curves"]["sft"][0]] == [1, 2, 3, 4, 5]
    assert facts["gates"]["perplexity_rise_max"] == [{"status": "fail", "value": pytest.approx(0.1), "limit": 0.05}] * 2
    (pair,) = facts["metrics"][0]["pairs"]
    assert (pair["shared"], pair["difference"], pair["refused"]) == (24, 0.0, None)


def test_gates_headline_metrics_and_what_was_prepared_are_the_summary(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    made = recipe(tmp_path / "work")
    told_of = follow(made, base, prepared, scores, proof).summary
    assert told_of["prepare/rows/train"] == 24
    assert told_of["prepare/dropped/cap/over test_rows"] == 4
    assert told_of["score/thing/tuned"] == 1.0
    assert told_of["score/thing/ci95_low"] == 0.5
    assert told_of["score/general/speech/perplexity_change"] == 0.1
    assert told_of["gates/perplexity_rise_max/status"] == "fail"
    assert told_of["gates/parity_kl_mean_max/value"] == 0.0
    assert told_of["proof/seconds"] == 1.5


def test_artifacts_have_digests_and_inputs_and_no_file_is_sent(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    found = follow(recipe(tmp_path / "work"), base, prepared, scores, proof).artifacts
    logged = found["maintenance-prepare"]
    assert logged["metadata"]["digest"] == prepared.digest
    assert logged["metadata"]["inputs"] == {"documents": "d" * 64, "base": "b" * 64}
    assert logged["files"] == {"f": f"sha256:{'a' * 64}"}
    assert {one["type"] for one in found.values()} == {"prepare", "score", "proof", "run_table"}


def test_a_launch_that_finds_all_done_tells_nothing_twice(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    made, given = recipe(tmp_path / "work"), (base, prepared, scores, proof)
    once = follow(made, *given)
    assert follow(made, *given) == once
    again = decode(files(tmp_path / "work")[1:])
    assert again.history == {}
    assert again.artifacts == {}


def windows(texts: list[str], length: int = 8) -> Iterator[str]:
    for text in texts:
        words = text.split()
        yield from (" ".join(words[at : at + length]) for at in range(len(words) - length + 1))


def raw(work: Path) -> str:
    return "\n".join(file.read_bytes().decode("utf-8", "replace") for file in work.rglob("*") if file.is_file())


@pytest.mark.parametrize("privacy", ["none", "redacted", "full"])
def test_the_table_of_answers_keeps_to_privacy_samples(
    privacy: str, tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    work = tmp_path / "work"
    follow(recipe(work, f"privacy.samples={privacy}"), base, prepared, scores, proof)
    tables = list(work.rglob("files/media/table/**/*.table.json"))
    assert len(tables) == (0 if privacy == "none" else 1)
    texts = [
        json.loads(line)["messages"][-2]["content"].upper()
        for line in prepared.file("test.jsonl").read_text().splitlines()
    ]
    everything = raw(work)
    names = {str(line[name]) for line in all_lines(scores) for name in ("id", "group")}
    assert any(f'"{name}"' in everything for name in names) == (privacy == "full")
    assert any(window in everything for window in windows(texts, 4)) == (privacy == "full")
    assert ("a@firm.example" in everything) == (privacy == "full")
    if privacy == "redacted":
        first = dict(zip(told.COLUMNS, json.loads(tables[0].read_text())["data"][0], strict=True))
        assert first["answer"] == "You said: [6 words of the documents]. Write to [EMAIL_1]."
        assert first["gold_sha256"] == sha256(all_lines(scores)[0]["gold"].encode()).hexdigest()[:16]
        assert told.fingerprint("mail a@b.example") == told.fingerprint("mail c@d.example"), "these could be guessed"


def all_lines(scores: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in scores.file("answers.jsonl").read_text().splitlines()]


def test_another_evaluation_is_told_again_and_pairs_with_a_run_whose_ids_are_shown(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
) -> None:
    """After another `score.shots` the summary was new and the table old."""
    folder = tmp_path / "score-2"
    shutil.copytree(scores.path, folder)
    lines = [{**line, "answer": "none", "score": 0.0} for line in all_lines(scores)]
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    later = with_inputs(as_artifact(folder, "score", answers=48), adapter="c" * 64)
    work, other = tmp_path / "one", tmp_path / "two"
    for given in (scores, later, later):
        follow(recipe(work), base, prepared, given, proof)
    assert len(list(work.rglob("files/media/table/**/*.table.json"))) == 2
    follow(recipe(other, "privacy.samples=full"), base, prepared, scores, proof)
    facts = compare([read(str(files(work)[0])), read(str(files(other)[0]))])
    (pair,) = facts["metrics"][0]["pairs"]
    assert (pair["shared"], pair["only_first"], pair["only_other"], pair["difference"]) == (24, 0, 0, 1.0)


def test_no_passage_of_calls_of_nested_json_of_reasoning_or_of_preferences_is_told(
    tmp_path: Path, base: Artifact, prepared: Artifact, scores: Artifact
) -> None:
    parts = ("call", "text", "deep", "list", "thought", "tool", "chosen", "rejected", "asked", "quoted")
    numbers = ("one", "two", "three", "four", "five", "six")
    said = {part: " ".join(f"{number}{part}" for number in numbers) for part in parts}
    call = {"id": "c", "type": "function", "function": {"name": "note", "arguments": {"all": [{"of": said["call"]}]}}}
    written = {"type": "function", "function": {"name": "n", "arguments": json.dumps({"of": said["text"]})}}
    answer = json.dumps({"found": {"where": [{"text": said["deep"]}]}})
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "", "reasoning_content": said["thought"], "tool_calls": [call, written]},
        {"role": "tool", "content": json.dumps([{"row": said["tool"]}])},
        {"role": "assistant", "content": json.dumps([said["list"]])},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": answer},
    ]
    chat = {"id": "r", "group": "g", "messages": messages, "passages": {"p": said["quoted"]}}
    (prepared.path / "train.jsonl").write_text(f"{json.dumps(chat)}\n")
    (prepared.path / "preferences.jsonl").write_text(json.dumps({
        "messages": [{"role": "user", "content": said["asked"]}],
        "chosen": {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "note", "arguments": {"of": said["chosen"]}}}]},
        "rejected": {"role": "assistant", "content": said["rejected"]},
    }) + "\n")  # fmt: skip
    title = "A study of pumps on the north deck by J. Doe"
    given = [{"task": "t", "id": f"{title}/{part}", "group": title, "system": "tuned", "score": 1.0, "gold": answer,
              "answer": f"It says {text}, so I think."} for part, text in said.items()]  # fmt: skip
    scores.file("answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in given))
    table = told.samples(recipe(tmp_path / "work"), base, prepared, scores)
    rows = [dict(zip(told.COLUMNS, row, strict=True)) for row in table]
    assert {row["answer"] for row in rows} == {"It says [6 words of the documents], so I think."}
    assert {row["gold"] for row in rows} == {answer.replace(said["deep"], "[6 words of the documents]")}
    assert "pumps" not in json.dumps(table)
    assert (len({row["id"] for row in rows}), len({row["group"] for row in rows})) == (len(parts), 1)
    assert told.mark(rows[0]["id"]) == rows[0]["id"] == told.mark(given[0]["id"])


def test_passages_are_found_whatever_the_case_and_the_signs_and_in_chinese() -> None:
    known = told.passages(
        ["So: the PUMP, of unit-seven broke twice!", "应当：更换液压软管总成。", "the pump of the"],
        ["The pump of unit seven broke.", "必须更换液压软管"],
    )
    assert told.cut("So: the PUMP, of unit-seven broke twice!", known) == "So: [6 words of the documents] twice!"
    assert told.cut("应当：更换液压软管总成。", known) == "应当：[6 words of the documents]总成。"
    assert told.cut("the pump of the", known) == "the pump of the"
    assert told.cut("", known) == ""


def test_names_of_an_answers_json_are_no_passage(tmp_path: Path, base: Artifact, prepared: Artifact) -> None:
    texts = list(told._texts(recipe(tmp_path / "work"), base, prepared))
    gold = '{"colour":"red","thing":"pump","place":"left"}'
    assert told.cut(gold, told.passages([gold], texts)) == gold


def test_no_secret_and_no_place_is_told(tmp_path: Path) -> None:
    work = tmp_path / "work"
    token, signature, password, query = SECRETS
    made = recipe(
        work, f"handoff.signing_key=/home/someone/{signature}.key", f"+sft.trl.hub_token={token}",
        f"description='see https://me:{password}@host.example/x?token={query}'", f"model.path={tmp_path}/weights",
        "sources.speeches.path='letters/john.smith@example.com.txt'",
    )  # fmt: skip
    config = told.config_of(made)
    assert config["description"] == "see https://host.example/x"
    assert config["sft"]["trl"]["hub_token"] == told.HIDDEN
    assert config["score"]["batch_tokens"] == made.score.batch_tokens, "a number of tokens is no token"
    with Tracker.open(made, work, "d", say=pytest.fail) as tracker:
        tracker.log("sft", {"loss": 1.0}, 1)
    bytes_told = files(work)[0].read_bytes()
    for secret in (*SECRETS, str(tmp_path), "someone", "john.smith", socket.gethostname()):
        assert len(secret) < 4 or secret.encode() not in bytes_told, secret


def test_a_server_that_never_answers_delays_no_step_and_the_run_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead network: connections are taken and nothing comes back."""
    monkeypatch.setattr(tracking, "_START_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    work = tmp_path / "work"
    made = recipe(work)
    said: list[str] = []
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{dead.getsockname()[1]}")
        began = time.monotonic()
        with Tracker.open(made, work, "d", say=said.append) as tracker:
            waits = []
            for step in range(1, 101):
                before = time.monotonic()
                tracker.log("sft", {"loss": 1.0}, step)
                waits.append(time.monotonic() - before)
                time.sleep(0.01)
        took = time.monotonic() - began
    assert max(waits) < 0.5, "a step waited"
    assert took < 30
    assert len(said) == 1
    assert "goes on offline" in said[0]
    assert list(decode(sorted(work.glob("wandb/offline-run-*/*.wandb"))).history) == list(range(1, 101))

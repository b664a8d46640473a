"""What report.json says, and how the sentence on top follows from it."""

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_rows import row, task

from finetune import artifacts
from finetune.artifacts import MANIFEST, Artifact, Stage
from finetune.config.evaluation import Gates
from finetune.gates import vetoes
from finetune.metrics import METRICS, details
from finetune.metrics.labels import both_ways
from finetune.report import facts as collecting
from finetune.report import figures, markdown, page, samples, verdict
from finetune.report.layout import _DETAILS, systems
from finetune.report.strings import LANGUAGES, translated, words
from finetune.spikes import WINDOW, spike_in
from finetune.tracking.told import mark
from tests.report.synthetic_facts import make_facts


def leaves(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things_about_the_same_values() -> None:
    file = Path(collecting.__file__).with_name("strings.yaml")
    tables = {language: leaves(table) for language, table in yaml.safe_load(file.read_text()).items()}
    assert set(tables) == set(LANGUAGES)
    english, chinese = tables["en"], tables["zh"]
    assert set(english) == set(chinese)
    for key, text in english.items():
        if isinstance(text, str):
            assert placeholders(text) == placeholders(chinese[key]), key
        else:
            assert len(text) == len(chinese[key]), key


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_figure_of_a_metric_has_words_in_both_languages_and_a_spelling(metric: str) -> None:
    """The Chinese page said "false positive rate" and "other unit", and shares as 0.333 beside others in per cent."""
    gold = {
        "entity_f1": "[]", "citation": '{"source": "s", "quote": "in this passage"}', "numeric": "5",
    }.get(metric, '{"a": "b"}')
    options: dict[str, Any] = {
        "abstention": {"phrases": ["none"]}, "flag_accuracy": {"clean": [gold], "flagged": ["bad"]},
    }.get(metric, {})  # fmt: skip
    rows = [row(gold, {"s": "in this passage"}, ("A", "B"))]
    found = {**details([gold], rows, task(metric, **options)), "cut_off": 0}
    if metric == "multiple_choice":
        found |= both_ways([[0.0, -1.0]], rows)
    assert set(found) <= set(_DETAILS)
    assert all(set(found) <= set(words(language)["gain"]["figures"]) for language in LANGUAGES)


def test_what_stages_and_gates_wrote_in_english_is_said_in_the_language_of_the_report() -> None:
    """The Chinese page said its spikes and vetoes in English."""
    steps = [{"loss": 1.0, "grad_norm": 1.0}] * WINDOW
    sentences = [spike_in([*steps, {"loss": 1.0, "grad_norm": 1.0, name: 7.25}]) for name in ("loss", "grad_norm")]
    limits = Gates(export_loss_max=0.01, export_kl_mean_max=0.1)
    for loss, kl in ((math.nan, 0.0), (0.0625, 0.0), (0.0, math.nan), (0.0, 0.5)):
        scored = {"loss": loss, "tuned": 0.5, "quantised": 0.4375}
        sentences.append(vetoes(limits, {"int4": {"tasks": {"title": scored}, "kl_mean": kl}})["int4"])
    assert len({sentence for sentence in sentences if sentence}) == 6
    for sentence in sentences:
        assert sentence is not None
        assert translated(sentence, "en") == sentence
        chinese = translated(sentence, "zh")
        assert not re.search(r"[a-z]+ [a-z]+", chinese), chinese
        digits = re.compile(r"\d+(?:\.\d+)?")
        assert sorted(digits.findall(chinese)) == sorted(digits.findall(sentence))
    assert translated("something new", "zh") == "something new"


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [(0.2, 0.7, "learned"), (0.7, 0.2, "lost"), (0.6, 0.6, "same"), (0.5, 0.5, "same"), (0.1, 0.1, "wrong"),
     (None, 0.4, "learned"), (0.4, None, "lost"), (1.0, 1.0, "same"), (0.0, 0.0, "wrong")],
)
def test_a_row_is_learned_lost_same_or_wrong(base: float | None, tuned: float | None, expected: str) -> None:
    assert samples.outcome(base, tuned) == expected


@pytest.mark.parametrize(
    ("ci95", "word"), [([0.01, 0.2], "beats"), ([-0.01, 0.2], "not shown"), ([0.0, 0.2], "not shown"),
                       ([-0.2, -0.01], "worse")],
)
def test_the_verdict_claims_a_gain_only_when_the_whole_interval_is_above_zero(ci95: list[float], word: str) -> None:
    tasks = make_facts()["tasks"]
    said = verdict.sentence([{**tasks[0], "ci95": ci95}, tasks[1]], "en")
    assert word in said
    assert all(figures.signed(end) in said for end in ci95)


def test_the_verdict_names_a_classic_baseline_that_scores_higher() -> None:
    task = make_facts()["tasks"][0]
    assert "Linear" not in verdict.sentence([task], "en")
    assert "0.400" in verdict.sentence([{**task, "linear_baseline": 0.4}], "en")


@pytest.mark.parametrize(
    ("statuses", "accepted_by", "expected"),
    [(["pass", "pass"], None, "pass"), (["pass", "not_measured"], None, "unmeasured"),
     (["fail", "not_measured"], None, "fail"), (["pass", "fail"], None, "fail"),
     (["fail"], "somebody", "accepted"), (["pass"], "somebody", "pass"), ([], None, "pass")],
)
def test_a_failed_gate_forbids_unless_somebody_signs(
    statuses: list[str], accepted_by: str | None, expected: str
) -> None:
    assert verdict.decide([{"status": status} for status in statuses], accepted_by) == expected


def test_limits_not_kept_and_not_measured_are_named_beside_the_verdict() -> None:
    gates = [{"name": "gain_above", "status": "fail"}, {"name": "consistency_min", "status": "not_measured"},
             {"name": "leaks_max", "status": "pass"}, {"name": "latency_p95_max", "status": "not_measured"}]
    said = verdict.summary(gates, "en")
    assert said == "1 of 4 limits not kept: gain. 2 of 4 limits not measured: consistency, answer time."
    assert verdict.summary(gates[2:3], "en") == "All limits kept (1)."


def test_numbers_have_one_spelling() -> None:
    assert figures.signed(-0.0204) == "−0.020"
    assert figures.interval([-0.05, 0.1]) == "[−0.050,\u00a0+0.100]"
    assert figures.small(3.214e-6) == "3.21\u00a0×\u00a010⁻⁶"
    assert figures.small(0.0123) == "0.0123"
    assert figures.small(0.0) == "0"
    assert figures.change(-0.013) == "−1.3\u00a0%"
    assert figures.gate("gain_above", 0.0) == "0"
    assert figures.score(None) == figures.MISSING


def test_collect_joins_the_artifacts_of_a_run(tmp_path: Path) -> None:
    made = collect(tmp_path, "full")
    assert made["schema_version"] == "1"
    assert [row["id"] for row in made["samples"]] == ["b", "a"], "in the order of test.jsonl"
    first = made["samples"][0]
    assert first["prompt"] == "What is b? Write to jo@example.org"
    assert (first["base_few_shot"], first["tuned"], first["score_tuned"]) == ("no", "yes", 1.0)
    assert first["outcome"] == "learned"
    assert made["outcomes"] == {"qa": {"learned": 1, "lost": 0, "same": 0, "wrong": 1}}
    assert made["curves"]["sft"] == [
        {"step": 5, "loss": 1.5}, {"step": 10, "loss": 1.0, "eval_loss": 1.1},
        {"step": 15, "loss": 9.0, "spikes": [{"step": 13, "what": "loss 9"}]},
    ]
    assert made["timings"] == dict.fromkeys(("prepare", "sft", "score", "merge", "proof"), 1.0)
    assert made["cost"] is None
    assert made["tasks"][0]["contamination"]["overlap"][0]["span"] == "write to jo@example.org at once"
    assert made["tasks"][0]["title"] == "Questions"
    assert made["tasks"][0]["nearest_baseline"] is None
    assert [entry["stage"] for entry in made["lineage"]] == ["prepare", "sft", "score", "merge", "proof"]
    assert made["command"].endswith("recipe=demo model=tiny")
    assert made["rejects_examples"] == [
        {"source": "qa", "line": line, "id": str(line), "step": "read", "reason": "empty"} for line in (1, 2)
    ]
    json.dumps(made)


def test_privacy_none_keeps_counts_and_no_text(tmp_path: Path) -> None:
    made = collect(tmp_path, "none")
    assert made["samples"] == []
    assert made["outcomes"]["qa"]["learned"] == 1
    assert "What is" not in json.dumps(made)
    assert made["tasks"][0]["contamination"]["overlap"] == [{"id": "", "source": "", "span": None, "share": 0.9}]
    assert "at once" not in json.dumps(made)


def test_privacy_redacted_sends_every_shown_text_through_the_redactor(tmp_path: Path) -> None:
    made = collect(tmp_path, "redacted")
    assert "jo@example.org" not in json.dumps(made)
    assert made["samples"][0]["prompt"] == "What is b? Write to [EMAIL_1]"
    assert made["samples"][0]["gold"] == "yes"
    assert made["tasks"][0]["contamination"]["overlap"][0]["span"] == "write to [PERSONAL] at once"


def test_cost_is_what_all_gpus_of_the_machine_cost_while_each_stage_ran(tmp_path: Path) -> None:
    made = collect(tmp_path, "none", machine={"usd_per_gpu_hour": 2.5, "processes": 8})
    assert made["cost"]["gpu_hours"] == dict.fromkeys(("prepare", "sft", "score", "merge", "proof"), 8 / 3600)
    assert made["cost"]["usd_total"] == pytest.approx(5 * 8 / 3600 * 2.5)


@pytest.mark.parametrize("privacy", ["full", "redacted", "none"])
def test_no_id_of_a_row_leaves_unless_its_text_may(tmp_path: Path, privacy: str) -> None:
    """A record number is no pattern that redaction knows, and report.json had it in six places under `none`.

    `.wandb` files: tests/test_tracked.py."""
    names = ("qa/MRN-00482913", "qa/Eleanor_Rigby.txt:7")
    made = collect(tmp_path, privacy, names=names)
    texts = (json.dumps(made), page.render(made), markdown.render(made))
    for name in names:
        assert any(name.removeprefix("qa/") in text for text in texts) == (privacy == "full"), name
    told = {"full": names[0], "redacted": f"qa/{mark(names[0])}", "none": "qa/"}[privacy]
    overlap, near = made["tasks"][0]["contamination"]["overlap"][0], made["parity"]["near_ties"][0]
    assert overlap["id"] == overlap["source"] == near["id"] == made["prompting"]["shots"]["qa"][0] == told
    if privacy == "none":
        assert made["samples"] == []
        assert {row["id"] for row in made["rejects_examples"]} == {""}
    else:
        assert made["samples"][0]["id"] == told == made["parity"]["kl_max_at"]["id"]
        assert "Questions · row 1" in markdown.render(made), "and a row is called by its place all the same"


def test_a_quantised_model_stands_among_the_systems_of_its_task(tmp_path: Path) -> None:
    """It stood in a section of its own, beside the tuned model alone: is what is served better than the base?"""
    gain = {"difference": -0.1, "ci95": [-0.3, 0.1], "p": 0.2}
    task = {"tuned": 0.5, "quantised": 0.4, "loss": 0.1, "ci95": [0.05, 0.15], "p": 0.01, "n": 2,
            "against": "majority", "gain": gain}  # fmt: skip
    export = {"w8a8": {"bytes": 7, "kl_mean": 0.01, "kl_max": 0.02, "top1": 0.9, "tasks": {"qa": task}}}
    made = collect(tmp_path, "redacted", export=export)
    (told,) = made["tasks"]
    assert (told["tuned"], told["w8a8"]) == (0.5, 0.4)
    assert told["differences"]["w8a8"] == {"difference": 0.1, "ci95": [0.05, 0.15], "p": 0.01}, "tuned minus quantised"
    assert made["export"]["w8a8"]["vetoed"], "and it lost more than the limit allows"
    assert systems(made)[-1] == "w8a8"
    for text in (page.render(made), markdown.render(made)):
        assert "Tuned, merged, 8 bit" in text
        assert figures.interval(gain["ci95"]) in text
    known = {key: task[key] for key in ("tuned", "quantised", "loss", "ci95")}
    older = {"w8a8": {**export["w8a8"], "tasks": {"qa": known}}}
    assert "Tuned, merged, 8 bit" in page.render(collect(tmp_path / "older", "redacted", export=older))


def collect(
    root: Path, privacy: str, *, names: Sequence[str] = ("b", "a"), export: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    one, two = names
    root.mkdir(exist_ok=True)
    def artifact(stage: str, **files: str) -> Artifact:
        def fill(_: Any, *, out: Path) -> dict[str, Any]:
            for name, text in files.items():
                (out / name.replace("__", ".")).write_text(text)
            return {}

        made = artifacts.build(Stage(stage, 1, fill), {}, root=root, inputs={}, say=lambda _: None)
        (made.path / MANIFEST).write_text(json.dumps({**made.manifest, "seconds": 1.0}))
        return artifacts.read(made.path)

    def lines(*rows: Mapping[str, Any]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    def asked(name: str, about: str) -> dict[str, Any]:
        question = {"role": "user", "content": f"What is {about}? Write to jo@example.org"}
        return {"id": name, "messages": [question, {"role": "assistant", "content": "yes"}]}

    def answered(name: str, system: str, text: str, score: float) -> dict[str, Any]:
        return {"task": "qa", "id": name, "system": system, "answer": text, "score": score, "gold": "yes"}

    prepared = artifact(
        "prepare",
        test__jsonl=lines(asked(one, "b"), asked(two, "a")),
        ledger__json="[]",
        rejects__jsonl=lines(*(
            {"source": "qa", "line": n, "id": str(n), "step": "read", "reason": "empty", "detail": "?"}
            for n in (1, 2, 3)
        )),
    )
    scores = artifact(
        "score",
        answers__jsonl=lines(
            answered(two, "base_few_shot", "no", 0.0), answered(one, "base_few_shot", "no", 0.0),
            answered(two, "majority", "yes", 1.0), answered(two, "tuned", "no", 0.0),
            answered(one, "tuned", "yes", 1.0),
        ),
        scores__json=json.dumps({
            "tasks": [{"name": "qa", "metric": "exact_match", "n": 2, "base_zero_shot": None, "base_few_shot": 0.0,
                       "majority": 0.5, "linear_baseline": None, "tuned": 0.5, "against": "majority", "difference": 0.0,
                       "ci95": [-0.5, 0.5], "differences": {}, "contamination": {
                           "rows": 1, "share": 0.5, "passage": {"words": 8, "characters": 13}, "overlap": [
                           {"id": one, "source": one, "span": "write to jo@example.org at once", "share": 0.9,
                            "redacted": "write to [PERSONAL] at once"}]}}],
            "general": {"perplexity_base": {}, "perplexity_tuned": {}, "change": {}},
            "prompting": {"template_sha256": "e" * 64, "decoding": "greedy", "shots": {"qa": [one, two]}, "modes": {}},
        }),
    )
    steps: list[dict[str, Any]] = [
        {"step": 5, "loss": 1.5, "lr": 0.1}, {"step": 10, "loss": 1.0, "eval_loss": 1.1},
        {"step": 15, "loss": 9.0, "spikes": [{"step": 13, "what": "loss 9", "records": ["a", "b"]}]},
    ]
    log = lines(*steps, {"step": 10, "lr": 0.0})
    recipe = {
        "name": "demo", "title": "Demo", "language": "en", "stages": ["sft"],
        "tasks": {"qa": {"title": "Questions", "main": True}},
        "model": {"name": "x/tiny", "key": "tiny", "note": "", "licence": "mit"}, "method": {"name": "lora"},
        "gates": {"gain_above": None, "perplexity_rise_max": None, "parity_kl_mean_max": None},
        "handoff": {"accepted_by": None, "reason": None}, "privacy": {"samples": privacy}, **more,
    }
    parity = {"kl_max_at": {"id": one, "position": 4}, "near_ties": [{"id": one, "position": 1}]}
    adapter, proof = artifact("sft", log__jsonl=log), artifact("proof", parity__json=json.dumps(parity))
    return collecting.collect(
        recipe, base_digest="b" * 64, prepared=prepared, adapters=[adapter], scores=scores, proof=proof,
        stages=[prepared, adapter, scores, artifact("merge"), proof], command=collecting.command_line(recipe, ()),
        environment={"python": "3.11"}, documents={"qa": {"qa.jsonl": "d" * 64}},
        exported=artifact("export", export__json=json.dumps(export)) if export else None,
    )

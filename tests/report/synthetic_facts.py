"""Invented facts of a run that never happened, for tests of the page only: no number here was measured."""

import hashlib
import random
from typing import Any

from finetune.report import facts as collecting
from finetune.report import verdict

TITLES = {
    "en": ("Article to marginal title", "Rule to kind of duty"),
    "zh": ("条文到旁注标题", "规则到义务种类"),
}


LINEAGE = {
    "prepare": ["base"], "sft": ["base", "prepare"], "dpo": ["base", "prepare", "sft"],
    "score": ["base", "prepare", "dpo"], "merge": ["base", "dpo"],
}


def make_facts(language: str = "en", rows: int = 96, gate: str = "pass", accepted: bool = False) -> dict[str, Any]:
    """A whole report.json. `gate`: status of the perplexity gate; `accepted`: somebody signed for the failure."""
    title, second = TITLES[language]
    tasks = [
        _task("title", title, "rouge_l", main=True, n=rows, scores=(0.223, 0.224, 0.184, 0.244, 0.231, 0.326)),
        _task("duty", second, "label_accuracy", main=False, n=74, scores=(0.304, 0.413, 0.382, 0.661, 0.552, 0.597)),
    ]
    rise = 0.081 if gate == "fail" else 0.021
    general = {
        "perplexity_base": {"speeches": 21.44, "glosses": 148.2},
        "perplexity_tuned": {"speeches": 21.44 * 0.987, "glosses": 148.2 * (1 + rise)},
        "change": {"speeches": -0.013, "glosses": rise},
    }
    gates = [
        {"name": "gain_above", "value": tasks[0]["ci95"][0], "limit": 0.0, "status": "pass"},
        {"name": "perplexity_rise_max", "value": None if gate == "not_measured" else rise, "limit": 0.05,
         "status": gate},
        {"name": "parity_kl_mean_max", "value": 3.21e-6, "limit": 1e-3, "status": "pass"},
    ]
    by, reason = ("R. Okafor, model risk", "speeches are not read by this product") if accepted else (None, None)
    samples = [_sample(number, language) for number in range(rows)]
    return {
        "schema_version": "1",
        "recipe": "legal",
        "title": {"en": "Titles for articles of law", "zh": "法律条文标题"}[language],
        "language": language,
        "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "note": "dequantised from Q4_1",
                  "licence": "apache-2.0", "digest": _hash("base files"), "method": "lora", "stages": ["sft", "dpo"]},
        "verdict": {"passed": gate == "pass", "status": verdict.decide(gates, by), "accepted_by": by, "reason": reason,
                    "sentence": verdict.sentence(tasks, language), "gates": verdict.summary(gates, language)},
        "tasks": tasks,
        "general": general,
        "gates": gates,
        "parity": {"kl_mean": 3.21e-6, "kl_max": 4.4e-5, "top1": 0.9987, "n_positions": 2310, "n_prompts": 24,
                   "near_ties": [{"id": "articles:3", "position": 4, "margin_nats": 0.01}], "disagreements": [],
                   "greedy_equal_float32": True, "full_prompts": 200,
                   "kl_max_at": {"id": "articles:3", "position": 4},
                   "modes": {mode: {"kl_mean": 3.1e-6, "kl_max": 4.4e-5, "top1": 0.9987, "n_positions": 1155,
                                    "n_prompts": 12} for mode in ("plain", "think")},
                   "bases": [{"name": "round-tripped 4-bit", "kl_mean": 3.3e-6, "kl_max": 4.1e-5, "top1": 1.0,
                              "chosen": True},
                             {"name": "as it is", "kl_mean": 0.0213, "kl_max": 0.31, "top1": 0.96,
                              "chosen": False}]},
        "export": {
            "w4a16": _export(116_700_449, 0.541, tasks, 0.062, "it loses 0.0620 of title"),
            "w8a8": _export(166_752_079, 0.0198, tasks, -0.009, None),
        },
        "privacy": "redacted",
        "samples": samples,
        "outcomes": collecting.count_outcomes(samples),
        "curves": {"sft": _curve(60, 2.3, 0.9), "dpo": _curve(24, 0.693, 0.41)},
        "ledger": _ledger(),
        "rejects_examples": [
            {"source": "articles", "line": 118, "id": "articles:118", "step": "dedup", "reason": "near_duplicate"},
            {"source": "articles", "line": 240, "id": "articles:240", "step": "filter", "reason": "too_short"},
        ],
        "timings": {"prepare": 4.2, "sft": 212.4, "pairs": 31.8, "dpo": 74.9, "score": 118.3, "merge": 2.6,
                    "proof": 14.1, "handoff": 3.3},
        "environment": {"python": "3.11.2", "platform": "Linux x86_64", "cpu": "a processor", "threads": 2,
                        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"}},
        "lineage": [
            {"stage": name, "key": _hash(name)[:16], "digest": _hash(name + " files"), "version": 1,
             "inputs": {use: _hash(use + " files") for use in uses}}
            for name, uses in LINEAGE.items()
        ],
        "command": "accelerate launch finetune/train.py recipe=legal model=smollm2_135m",
        "config": {"name": "legal", "seed": 0, "stages": ["sft", "dpo"], "sft": {"batch_size": 8, "max_steps": 60}},
    }


def _task(name: str, title: str, metric: str, *, main: bool, n: int, scores: tuple[float, ...]) -> dict[str, Any]:
    systems = ("base_zero_shot", "base_few_shot", "majority", "linear_baseline", "nearest_baseline")
    *others, tuned = scores
    differences = {
        system: {"difference": tuned - other, "ci95": [tuned - other - 0.049, tuned - other + 0.053]}
        for system, other in zip(systems, others, strict=True)
    }
    against = max(systems[:3], key=lambda system: scores[systems.index(system)])
    return {"name": name, "title": title, "metric": metric, "main": main, "n": n,
            **dict(zip(systems, others, strict=True)), "tuned": tuned, "against": against, **differences[against],
            "differences": differences}


def _export(size: int, kl: float, tasks: list[dict[str, Any]], loss: float, why: str | None) -> dict[str, Any]:
    scored = {
        task["name"]: {"tuned": task["tuned"], "quantised": task["tuned"] - loss, "loss": loss,
                       "ci95": [loss - 0.031, loss + 0.029], "n": task["n"]}
        for task in tasks
    }  # fmt: skip
    return {"bytes": size, "kl_mean": kl, "kl_max": 9 * kl, "top1": 0.946, "tasks": scored, "vetoed": why}


def _sample(number: int, language: str) -> dict[str, Any]:
    dice = random.Random(number)
    if language == "zh":
        prompt = f"第{number}条　国家保护公民的合法财产所有权和继承权，任何单位不得侵犯。请给出标题。"
        gold, wrong = "财产所有权与继承权的保护", "国家的公民权利"
        part = "财产所有权的保护"
    else:
        prompt = (f"Article {number}. No person shall be deprived of his property save by authority of law, and the "
                  "State shall, by law, regulate the manner in which it is taken. Give the title of this article.")
        gold = "Persons not to be deprived of property save by authority of law"
        wrong = "The State and its property rights"
        part = "Persons not to be deprived of property"
    texts = {gold: 1.0, part: 0.72, wrong: 0.18}
    base = dice.choice([wrong, wrong, wrong, part])
    tuned = dice.choice([gold, gold, part, wrong])
    zero = wrong
    row = {"task": "title", "id": f"articles:{number}", "prompt": prompt, "gold": gold, "base_zero_shot": zero,
           "base_few_shot": base, "tuned": tuned, "score_base_zero_shot": texts[zero],
           "score_base_few_shot": texts[base], "score_tuned": texts[tuned]}
    return {**row, "outcome": collecting.outcome(texts[base], texts[tuned])}


def _curve(steps: int, start: float, end: float) -> list[dict[str, Any]]:
    dice = random.Random(steps)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1, 2):
        loss = end + (start - end) * 0.93**step + dice.uniform(-0.03, 0.03)
        rows.append({"step": step, "loss": round(loss, 4)})
    held_out = range(20, steps + 1, 20)
    rows += [{"step": step, "eval_loss": round(end + 0.06 + (start - end) * 0.93**step, 4)} for step in held_out]
    return sorted(rows, key=lambda row: row["step"])


def _ledger() -> list[dict[str, Any]]:
    steps = [
        ("read", "articles", 412, {"no text": 3}), ("read", "rules", 388, {}),
        ("filter", "articles", 409, {"too_short": 6}), ("filter", "rules", 388, {"where": 41}),
        ("dedup", "articles", 403, {"exact_duplicate": 2, "near_duplicate": 9}), ("dedup", "rules", 347, {}),
        ("decontaminate", "articles", 392, {"shared_13_gram": 4}),
        ("decontaminate", "rules", 347, {}), ("build", "articles", 388, {"over train_rows": 12}),
        ("build", "rules", 347, {"over train_rows": 19, "empty answer": 1}),
    ]
    return [{"step": step, "source": source, "rows_in": rows, "rows_out": rows - sum(dropped.values()),
             "dropped": dropped} for step, source, rows, dropped in steps]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

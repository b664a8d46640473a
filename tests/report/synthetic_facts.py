"""Invented facts of a run that never happened, for tests of the page only: no number here was measured."""

import hashlib
import random
from typing import Any

from finetune.metrics.labels import OTHER
from finetune.report import samples as rows_of_report
from finetune.report import verdict

TITLES = {
    "en": ("Article to marginal title", "Rule to kind of duty"),
    "zh": ("条文到旁注标题", "规则到义务种类"),
}


LINEAGE = {
    "prepare": ["base"], "sft": ["base", "prepare"], "dpo": ["base", "prepare", "sft"],
    "score": ["base", "prepare", "dpo"], "merge": ["base", "dpo"],
}


TIMINGS = {"prepare": 4.2, "sft": 212.4, "pairs": 31.8, "dpo": 74.9, "score": 118.3, "merge": 2.6, "proof": 14.1}


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
        "tokens": {"speeches": 19_968, "glosses": 200},
        "window": 512,
    }
    gates = [
        {"name": "gain_above", "value": tasks[0]["ci95"][0], "limit": 0.0, "status": "pass"},
        {"name": "perplexity_rise_max", "value": None if gate == "not_measured" else rise, "limit": 0.05,
         "status": gate},
        {"name": "parity_kl_mean_max", "value": 3.21e-6, "limit": 1e-3, "status": "pass"},
        {"name": "consistency_min", "value": 0.967, "limit": 0.9, "status": "pass"},
        {"name": "latency_p95_max", "value": 1.13, "limit": 1.2, "status": "pass"},
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
        **_asked_for(),
        "prompting": {"template_sha256": _hash("template"), "decoding": "greedy"},
        "privacy": "redacted",
        "samples": samples,
        "outcomes": rows_of_report.count_outcomes(samples),
        "curves": {"sft": _curve(60, 2.3, 0.9), "dpo": _curve(24, 0.693, 0.41)},
        "ledger": _ledger(),
        "rejects_examples": [
            {"source": "articles", "line": 118, "id": "articles:118", "step": "near duplicates",
             "reason": "near duplicate"},
            {"source": "articles", "line": 240, "id": "articles:240", "step": "filter", "reason": "too short"},
        ],
        "timings": dict(TIMINGS),
        "cost": {"usd_per_gpu_hour": 2.0, "gpus": 8,
                 "gpu_hours": {name: 8 * spent / 3600 for name, spent in TIMINGS.items()},
                 "usd": {name: 16 * spent / 3600 for name, spent in TIMINGS.items()},
                 "usd_total": 16 * sum(TIMINGS.values()) / 3600},
        "environment": {"python": "3.11.2", "platform": "Linux x86_64", "cpu": "a processor", "threads": 2,
                        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"}},
        "lineage": [
            {"stage": name, "key": _hash(name)[:16], "digest": _hash(name + " files"), "version": 1,
             "inputs": {use: _hash(use + " files") for use in uses}, "seconds": TIMINGS[name],
             "files": {f"{name}.json": _hash(name + ".json")},
             "made": {"code": {"version": "0.1.0", "commit": "c" * 40, "dirty": name == "score"}}}
            for name, uses in LINEAGE.items()
        ],
        "documents": {"articles": {"articles.html": _hash("articles")}, "rules": {"rules.jsonl": _hash("rules")}},
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
    differences["merged"] = {"difference": 0.0, "ci95": [0.0, 0.0]}
    details: dict[str, Any] = {system: {"cut_off": 7, "valid": 0.871, "fields": {"part": 0.613}} for system in systems}
    details["tuned"] = {
        "cut_off": 2, "valid": 0.993, "fields": {"part": 0.742}, "macro_f1": 0.583,
        "odd_number": 17.5, "ci95": {"macro_f1": [0.487, 0.691]},
        "labels": {"must": {"n": 51, "precision": 0.654, "recall": 0.783, "f1": 0.713},
                   "may": {"n": 23, "precision": 0.421, "recall": 0.304, "f1": 0.353}},
        "confusion": [{"gold": "may", "answered": "must", "n": 14}, {"gold": "may", "answered": OTHER, "n": 2}],
    }
    overlap = [{"id": "articles:9", "source": "articles:310", "share": 0.412,
                "span": "shall be entitled to practise in any court in the territory"}]
    return {"name": name, "title": title, "metric": metric, "main": main, "n": n, "groups": n // 2,
            **dict(zip(systems, others, strict=True)), "tuned": tuned, "merged": tuned, "against": against,
            **differences[against], "differences": differences, "details": details, "standard_error": 0.0261,
            "p": 0.0004, "few_groups": not main, "p_adjusted": 0.0127, "smallest_effect": 0.0731,
            "contamination": {"rows": 1, "share": 1 / n, "passage": {"words": 8, "characters": 13}, "overlap": overlap}}


def _asked_for() -> dict[str, Any]:
    """What SCORE measures only where the recipe asks for it."""
    lengths, depths = [1024, 4096, 16384], [0.0, 0.25, 0.5, 0.75, 1.0]
    right = [8, 8, 7, 8, 8, 8, 7, 6, 7, 8, 7, 5, 3, 5, 8]
    kinds = ["needle", "cross_reference"]
    cells = [
        {"kind": kind, "length": length, "depth": depth, "n": 8, "right": right[5 * at + down] - (kind != "needle"),
         "base": 8 - (kind != "needle") - at}
        for kind in kinds for at, length in enumerate(lengths) for down, depth in enumerate(depths)
    ]
    mode = {"n": 96, "ci95": [0.281, 0.371], "cut_off": 13, "no_answer": 17}
    times = {"ttft_s": {"p50": 0.0432, "p95": 0.0911}, "token_s": {"p50": 0.0121, "p95": 0.0174},
             "answer_s": {"p50": 0.644, "p95": 1.13}}
    return {
        "modes": {
            "title": {"thinking": {**mode, "score": 0.331, "tokens_mean": 214.3, "seconds_mean": 3.92},
                      "plain": {**mode, "score": 0.326, "tokens_mean": 12.7, "seconds_mean": 0.284}},
            "advised": {"title": {"mode": "plain", "why": "Thinking is not shown to score better and takes longer."}},
        },
        "consistency": {"prompts": 40, "repeats": 2, "paraphrases": 3, "share_same": 0.967, "ci95": [0.921, 0.988],
                        "few_groups": True, "kinds": {"repeated": 1.0, "spaced": 0.975, "thankful": 0.925},
                        "determinism": {"prompts": 40, "identical": 39}},
        "context": {"lengths": lengths, "depths": depths, "kinds": kinds, "rows": cells, "loss": 0.282,
                    "base_loss": 0.267},
        "leaks": {"answers": 170, "found": [{"kind": "phone", "n": 1}], "total": 1},
        "harness": [
            {"task": "sciq", "version": "1.0", "shots": 0, "metric": "acc", "better": "higher", "n": 1000, "base": 0.71,
             "tuned": 0.698, "difference": -0.012, "ci95": [-0.031, 0.007], "few_groups": False},
            {"task": "wikitext", "version": "2.0", "shots": 0, "metric": "word_perplexity", "better": "lower", "n": 62,
             "base": 31.2, "tuned": 31.9, "difference": 0.7, "ci95": None, "few_groups": False},
        ],
        "latency": {"concurrency": 4, "requests": 96, "failed": 1, **times,
                    "tokens": {"prompt_mean": 143.2, "answer_mean": 12.6, "per_second": 61.3}, "server": "vLLM 0.32.0",
                    "machine": {"cpu": "a processor", "threads": 2}},
    }


def _export(size: int, kl: float, tasks: list[dict[str, Any]], loss: float, why: str | None) -> dict[str, Any]:
    scored = {
        task["name"]: {"tuned": task["tuned"], "quantised": task["tuned"] - loss, "loss": loss,
                       "ci95": [loss - 0.031, loss + 0.029], "n": task["n"], "p": 0.0213, "against": task["against"],
                       "gain": {"difference": task["difference"] - loss, "p": 0.0327,
                                "ci95": [task["ci95"][0] - loss, task["ci95"][1] - loss]}}
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
    return {**row, "outcome": rows_of_report.outcome(texts[base], texts[tuned])}


def _curve(steps: int, start: float, end: float) -> list[dict[str, Any]]:
    dice = random.Random(steps)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1, 2):
        loss = end + (start - end) * 0.93**step + dice.uniform(-0.03, 0.03)
        rows.append({"step": step, "loss": round(loss, 4)})
    if steps > 40:
        what = "gradient norm 9.1, where the 20 steps before it had at most 2.2"
        rows[-9]["spikes"] = [{"step": rows[-9]["step"], "what": what}]
    held_out = range(20, steps + 1, 20)
    rows += [{"step": step, "eval_loss": round(end + 0.06 + (start - end) * 0.93**step, 4)} for step in held_out]
    return sorted(rows, key=lambda row: row["step"])


def _ledger() -> list[dict[str, Any]]:
    steps = [
        ("read", "articles", 412, {"no text": 3}), ("read", "rules", 388, {}),
        ("filter", "articles", 409, {"too short": 6}), ("filter", "rules", 388, {"too long": 41}),
        ("near duplicates", "articles", 403, {"near duplicate": 11}), ("near duplicates", "rules", 347, {}),
        ("decontaminate", "articles", 392, {"shared with an evaluation row": 4}),
        ("decontaminate", "rules", 347, {}), ("cap", "articles", 388, {"over train_rows": 12}),
        ("cap", "rules", 347, {"over train_rows": 19, "empty answer": 1}),
    ]
    return [{"step": step, "source": source, "rows_in": rows, "rows_out": rows - sum(dropped.values()),
             "dropped": dropped} for step, source, rows, dropped in steps]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""Make inspect_ai_errors.json: standard errors as inspect_ai computes them, for tests/score/test_statistics.py.

inspect_ai brings 80 packages (boto3, textual, fastapi ...), too many to test one formula with, so its answers are kept.
In an environment of its own: pip install inspect-ai==0.3.285 && python tests/score/inspect_ai_errors.py
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

from inspect_ai.scorer import SampleScore, Score, stderr


def main() -> None:
    draw = random.Random(5)
    cases = []
    for number in range(12):
        groups = [str(draw.randrange(2 + 3 * number)) for _ in range(10 + 17 * number)]
        groups[:2] = ["0", "1"]  # two at least
        if number % 2:
            scores = [[float(draw.random() < 0.6), float(draw.random() < 0.4)] for _ in groups]
        else:
            scores = [[draw.random(), draw.betavariate(0.4, 0.9)] for _ in groups]
        first, second = [pair[0] for pair in scores], [pair[1] for pair in scores]
        cases.append({
            "groups": groups, "first": first, "second": second,
            "of_first": error(first, groups), "free": error(first, None),
            "of_difference": error([a - b for a, b in zip(first, second, strict=True)], groups),
        })  # fmt: skip
    told = {"made_by": f"inspect_ai {version('inspect-ai')}", "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def error(values: list[float], groups: list[str] | None) -> float:
    names = groups or [""] * len(values)
    scores = [
        SampleScore(score=Score(value=value), sample_metadata={"group": name})
        for value, name in zip(values, names, strict=True)
    ]
    found = stderr(cluster="group") if groups else stderr()
    return float(found(scores))


if __name__ == "__main__":
    main()

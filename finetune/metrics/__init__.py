"""The metrics that recipes name: `@metric("name")` makes one of a function (docs/tasks.md)."""

from finetune.metrics import grounded, labels, objects, quantities, texts
from finetune.metrics.metric import (
    METRICS,
    check_name,
    details,
    gold_problem,
    kind,
    metric,
    ratios,
    read_options,
    score,
)

__all__ = [
    "METRICS", "check_name", "details", "gold_problem", "grounded", "kind", "labels", "metric", "objects", "quantities",
    "ratios", "read_options", "score", "texts",
]  # fmt: skip

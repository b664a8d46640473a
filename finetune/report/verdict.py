"""The one sentence on top: is the tuned model better, by how much, how sure are we, may it be handed over."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from finetune.report import figures
from finetune.report.strings import words

Status = Literal["pass", "unmeasured", "fail", "accepted"]
CLASSIC = ("linear_baseline", "nearest_baseline")


def decide(gates: Sequence[Mapping[str, Any]], accepted_by: str | None) -> Status:
    """`fail` when a gate failed, `accepted` when somebody signed for that, `unmeasured` when nothing failed but
    something that was asked for is not known, else `pass`."""
    states = {gate["status"] for gate in gates}
    if "fail" in states:
        return "accepted" if accepted_by else "fail"
    return "unmeasured" if "not_measured" in states else "pass"


def sentence(tasks: Sequence[Mapping[str, Any]], language: str) -> str:
    """The finding on the main task with its interval in words, and a classic baseline that scores higher still."""
    t = words(language)
    main = main_task(tasks)
    low, high = main["ci95"]
    finding = "better" if low > 0 else "worse" if high < 0 else "unclear"
    parts = [
        t["verdict"][finding].format(
            task=main["title"],
            against=t["against"][main["against"]],
            difference=figures.signed(main["difference"]),
            metric=metric_name(main["metric"], language),
            low=figures.signed(low),
            high=figures.signed(high),
        )
    ]
    if main.get("few_groups"):
        parts.append(t["verdict"]["few_groups"])
    rivals = [name for name in CLASSIC if main.get(name) is not None and main[name] > main["tuned"]]
    if rivals:
        best = max(rivals, key=lambda name: float(main[name]))
        parts.append(t["verdict"]["classic_wins"].format(
            system=t["system"][best], score=figures.score(main[best])))
    return ("" if language == "zh" else " ").join(parts)


def main_task(tasks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The headline task: a recipe has exactly one."""
    return next(task for task in tasks if task["main"])


def metric_name(metric: str, language: str) -> str:
    """A metric's name for readers; one this table does not know keeps its own name."""
    return str(words(language)["metric"].get(metric, metric))


def summary(gates: Sequence[Mapping[str, Any]], language: str) -> str:
    """What the gates say together: those that failed and those that nobody measured, each by name."""
    t = words(language)
    if not gates:
        return str(t["verdict"]["no_gates"])
    said = []
    for status, spelling in (("fail", "failed_gates"), ("not_measured", "some_unmeasured")):
        names = [t["gates"]["short"].get(gate["name"], gate["name"]) for gate in gates if gate["status"] == status]
        if names:
            listed = t["list_separator"].join(names)
            said.append(t["verdict"][spelling].format(n=len(names), total=len(gates), names=listed))
    return ("" if language == "zh" else " ").join(said) or str(t["verdict"]["all_gates"].format(total=len(gates)))

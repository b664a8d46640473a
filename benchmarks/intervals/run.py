"""Do our 95 % intervals hold the truth 95 times in 100? Simulated evaluations, scored by the code that ships.

    python benchmarks/intervals/run.py            # 10,000 simulations a scenario; goes on where it was stopped
    python benchmarks/intervals/run.py --table    # the table of README.md from the results

Two systems answer the same rows; rows lie in groups. Behind each score stands a normal variable: of the group and of
the row, each in part common to the two systems (what pairs them) and in part a system's own. A score is 1 where it
lies below a threshold, or the quantile of a beta distribution (U-shaped, like the overlaps of texts). The true
difference is known: it is that of the two means. Group sizes do not depend on the scores.
"""

import argparse
import json
import time
import zlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import special

from finetune.score.statistics import FEW_GROUPS, paired_difference

RESULTS = Path(__file__).with_name("results.json")
SIMULATIONS = 10_000
PROMISED = (0.94, 0.96)


@dataclass(frozen=True)
class Scenario:
    scores: str
    """`0/1` or `continuous`"""
    groups: int
    sizes: str
    """Rows of a group: `1`, `4`, `1-7` (uniform) or `skewed` (lognormal, 1 to 40)."""
    within: float
    """Share of a score's variance that its group explains."""
    paired: float
    """Share of that which both systems have in common."""
    worse: float
    """Mean score of the second system."""
    better: float
    """Mean score of the first."""

    @property
    def name(self) -> str:
        return (
            f"{self.scores}, {self.groups} groups of {self.sizes}, within {self.within}, paired {self.paired}, "
            f"{self.worse} -> {self.better}"
        )


def scenarios() -> list[Scenario]:
    """Those that are promised (30 groups and more) and, to be seen, some with fewer."""
    effects = ((0.0, 0.5, 0.4, 0.4), (0.3, 0.5, 0.3, 0.45), (0.6, 0.7, 0.1, 0.2), (0.3, 0.7, 0.85, 0.93))
    return [
        Scenario(scores, groups, sizes, *effect)
        for scores in ("0/1", "continuous")
        for sizes in ("1", "4", "1-7", "skewed")
        for effect in effects
        for groups in (10, 30, 100)
    ]


@dataclass(frozen=True)
class Rows:
    """The rows of one simulated evaluation."""

    first: np.ndarray
    second: np.ndarray
    groups: np.ndarray


def draw_rows(case: Scenario, draw: np.random.Generator) -> Rows:
    sizes = {
        "1": lambda: np.ones(case.groups, dtype=int),
        "4": lambda: np.full(case.groups, 4),
        "1-7": lambda: draw.integers(1, 8, case.groups),
        "skewed": lambda: np.minimum(np.ceil(draw.lognormal(1.0, 1.0, case.groups)), 40).astype(int),
    }[case.sizes]()
    groups = np.repeat(np.arange(case.groups), sizes)
    of_groups, of_rows = draw.standard_normal((3, case.groups)), draw.standard_normal((3, len(groups)))
    both = [
        np.sqrt(case.within) * (np.sqrt(case.paired) * of_groups[0] + np.sqrt(1 - case.paired) * of_groups[k])[groups]
        + np.sqrt(1 - case.within) * (np.sqrt(case.paired) * of_rows[0] + np.sqrt(1 - case.paired) * of_rows[k])
        for k in (1, 2)
    ]
    first, second = (_scores(case.scores, z, mean) for z, mean in zip(both, (case.better, case.worse), strict=True))
    return Rows(first, second, groups)


def _scores(kind: str, z: np.ndarray, mean: float) -> np.ndarray:
    below = special.ndtr(z)
    return (below < mean).astype(float) if kind == "0/1" else special.betaincinv(1.5 * mean, 1.5 * (1 - mean), below)


def simulate(case: Scenario, simulations: int, seed: int = 0) -> dict[str, float]:
    """Shares of intervals that hold the truth, lie above it and below it; how often `few_groups` is said; width."""
    draw = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    truth = case.better - case.worse
    above = below = few = 0
    width = 0.0
    for _ in range(simulations):
        rows = draw_rows(case, draw)
        found = paired_difference(rows.first.tolist(), rows.second.tolist(), [str(name) for name in rows.groups])
        above += truth < found.ci95[0]
        below += truth > found.ci95[1]
        few += found.few_groups
        width += found.ci95[1] - found.ci95[0]
    return {
        "covered": 1 - (above + below) / simulations,
        "above": above / simulations,
        "below": below / simulations,
        "few_groups": few / simulations,
        "width": round(width / simulations, 4),
    }


def promised(case: Scenario, found: dict[str, float]) -> bool:
    """Enough groups, and not told to be too few in more than one evaluation of 20."""
    return case.groups >= FEW_GROUPS and found["few_groups"] <= 0.05


def probe() -> list[list[float]]:
    """What the method says of a few fixed evaluations: results of another method are not taken for its."""
    found = []
    for number, case in enumerate(scenarios()[::17]):
        rows = draw_rows(case, np.random.default_rng(number))
        one = paired_difference(rows.first.tolist(), rows.second.tolist(), [str(name) for name in rows.groups])
        found.append([round(one.ci95[0], 9), round(one.ci95[1], 9)])
    return found


def table(told: dict) -> str:
    """Coverage in per cent, one row for each kind of evaluation, one column for each number of groups."""
    columns = list(dict.fromkeys(case.groups for case in scenarios()))
    lines = [
        "| scores | rows a group | within, paired | means | " + " | ".join(f"{n} groups" for n in columns) + " |",
        "|---|---|---|---|" + "---|" * len(columns),
    ]
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for case in scenarios():
        found = told["scenarios"][case.name]
        cell = f"{100 * found['covered']:.1f}"
        key = (case.scores, case.sizes, f"{case.within}, {case.paired}", f"{case.worse}, {case.better}")
        rows.setdefault(key, []).append(cell if promised(case, found) else f"({cell})")
    return "\n".join([*lines, *(f"| {' | '.join([*key, *cells])} |" for key, cells in rows.items())]) + "\n"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--table", action="store_true")
    words.add_argument("--part", default="1/1", help="n/m: every m-th from the n-th on; then run without it")
    asked = words.parse_args()
    if asked.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))), end="")
        return
    number, parts = map(int, asked.part.split("/"))
    file = RESULTS if parts == 1 else RESULTS.with_name(f"results-{number}-of-{parts}.json")
    fresh = {"simulations": SIMULATIONS, "probe": probe(), "scenarios": {}}
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else fresh
    for part in RESULTS.parent.glob("results-*-of-*.json") if parts == 1 else ():
        other = json.loads(part.read_text(encoding="utf-8"))
        if other["probe"] == fresh["probe"]:
            told = other | {"scenarios": told["scenarios"] | other["scenarios"]}
        part.unlink()
    if told["probe"] != fresh["probe"]:
        print("the method changed: everything is simulated anew")
        told = fresh
    began = time.monotonic()
    for case in scenarios()[number - 1 :: parts]:
        if case.name in told["scenarios"]:
            continue
        told["scenarios"][case.name] = simulate(case, SIMULATIONS) | {"scenario": asdict(case)}
        told |= {"date": str(datetime.now(tz=UTC).date()), "numpy": version("numpy"), "scipy": version("scipy")}
        told["seconds"] = round(told.get("seconds", 0.0) + time.monotonic() - began, 1)
        began = time.monotonic()
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
        print(f"{told['scenarios'][case.name]['covered']:.4f}  {case.name}", flush=True)


if __name__ == "__main__":
    main()

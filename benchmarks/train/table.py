"""The tables of README.md out of the committed results: no figure there is typed by hand.

    python benchmarks/train/table.py [--write]
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = {
    "ours.direct": "ours, `python finetune/train.py`, PREPARE included",
    "ours.launch": "ours, `accelerate launch`, PREPARE included",
    "ours.prepared": "ours, PREPARE done before",
    "trl.default": "TRL, defaults", "trl.best": "TRL, best",
    "llamafactory.default": "LLaMA-Factory, defaults", "llamafactory.best": "LLaMA-Factory, best",
    "axolotl.best": "axolotl, best", "ms-swift.best": "ms-swift, best",
}
_T95 = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of pairs -> Student's t at 97.5 %, one degree of freedom less."""
BEGIN, END = "<!-- made by table.py from {file} -->", "<!-- end of {file} -->"


def render(book: dict[str, Any]) -> str:
    """Markdown: SFT, DPO, then each peer's documented command. Medians over repetitions, least and most in brackets."""
    cells = book["cells"]
    parts = [_facts(book)]
    for title, shown in (
        ("SFT", _timed(cells, "sft")),
        ("DPO, 8 pairs a step", _timed(cells, "dpo")),
        ("Held-out NLL after 60 steps of SFT", _held_out(cells)),
        ("A peer's own documented configuration, up to its first step on this CPU", _documented(cells)),
    ):
        if shown:
            parts += [f"**{title}**", shown]
    return "\n\n".join(parts)


def _facts(book: dict[str, Any]) -> str:
    machine, cells = book["machine"], book["cells"]
    whole = cells.get("whole", {})
    dates = sorted({cell["date"] for cell in cells.values()})
    return (
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}, {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['threads']} threads, Python {machine['python']}. {whole.get('rows', '?')} rows, "
        f"{whole.get('pairs', '?')} pairs. Held-out NLL of the untrained model: "
        f"{whole['base']['nll'] if whole else float('nan'):.3f}."
    )


def _timed(cells: dict[str, Any], kind: str) -> str:
    head = ["", "CPU s a step", "wall s a step", "start to first step, s", "peak RSS, MiB"]
    if kind == "sft":
        head[2:2] = ["supervised tokens a CPU s"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, shown in NAMES.items():
        runs = [cell for key, cell in cells.items() if key.startswith(f"{kind}/{name}/")]
        if not runs:
            continue
        failed = next((cell["error"] for cell in runs if "error" in cell), None)
        if failed:
            lines.append([shown, f"failed: {failed}", *[""] * (len(head) - 2)])
            continue
        wanted = ["cpu_step", "wall_step", "first_step_s", "peak_mib"]
        if kind == "sft":
            wanted.insert(1, "supervised_per_cpu_s")
        if kind == "dpo" and name == "ours.direct":
            shown = "ours, `python finetune/train.py`, PREPARE, SFT and PAIRS done before"
        lines.append([shown, *(_spread([cell[key] for cell in runs if key in cell]) for key in wanted)])
    if len(lines) == 2:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_ratio(cells, kind)}"


def _ratio(cells: dict[str, Any], kind: str) -> str:
    """How many CPU seconds the best peer takes for one of ours, by medians."""
    steps: dict[str, list[float]] = {}
    for key, cell in cells.items():
        if key.startswith(f"{kind}/") and "cpu_step" in cell:
            steps.setdefault(key.split("/")[1], []).append(cell["cpu_step"])
    middle = {name: statistics.median(values) for name, values in steps.items()}
    ours = middle.pop("ours.direct")
    best = min(middle, key=lambda name: middle[name])
    runs = min(len(steps["ours.direct"]), len(steps[best]))
    two = (f"{kind}/ours.direct/", f"{kind}/{best}/")
    counted = min(cell["steps"] for key, cell in cells.items() if key.startswith(two) and "steps" in cell)
    return (
        f"The best peer ({NAMES[best]}) takes {middle[best] / ours:.2f} times our CPU seconds a step. "
        f"Steps counted in a run: {counted}. Repetitions of these two: {runs}"
        f"{'; one alone says nothing of the spread' if runs == 1 else ''}."
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    digits = 0 if max(values) >= 100 else 1 if max(values) >= 10 else 2
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def _held_out(cells: dict[str, Any]) -> str:
    """Each contender's mean over seeds, and what ours has more than it, paired by seed, with a 95 % t interval."""
    found: dict[str, dict[str, float]] = {}
    for key, cell in cells.items():
        kind, _, rest = key.partition("/")
        if kind == "heldout" and "nll" in cell:
            name, _, seed = rest.rpartition("/")
            found.setdefault(name, {})[seed] = cell["nll"]
    ours = found.get("ours.direct", {})
    lines = [["", "seeds", "mean NLL [least, most]", "ours - it [95 % interval]"], ["---", "---:", "---:", "---:"]]
    for name, shown in NAMES.items():
        if name in found:
            nll = found[name]
            mean = f"{statistics.mean(nll.values()):.4f} [{min(nll.values()):.4f}, {max(nll.values()):.4f}]"
            both = [] if name == "ours.direct" else [ours[seed] - nll[seed] for seed in sorted(nll) if seed in ours]
            lines.append([shown.partition(", PREPARE")[0], str(len(nll)), mean, difference(both)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def difference(pairs: list[float]) -> str:
    """Mean of paired differences with Student's 95 % interval; '' for fewer than three, which say nothing."""
    if len(pairs) < 3:
        return ""
    mean = statistics.mean(pairs)
    half = _T95[len(pairs)] * statistics.stdev(pairs) / len(pairs) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def _documented(cells: dict[str, Any]) -> str:
    lines = [["peer", "command", "a step?", "what it said"], ["---"] * 4]
    for key, cell in cells.items():
        if key.startswith("documented/"):
            words = [Path(word).name if "/" in word else word for word in cell["command"][:3]]
            says = (cell["error"] or "").replace("|", "\\|")
            lines.append([key.partition("/")[2], f"`{' '.join(words)}`", "yes" if cell["first_step"] else "no", says])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def fill(page: str, results: Path) -> str:
    """The page with every block between its two marks made again."""
    for file in sorted(results.glob("*.json")):
        begin, end = BEGIN.format(file=file.name), END.format(file=file.name)
        if begin in page:
            before, _, rest = page.partition(begin)
            after = rest.partition(end)[2]
            page = f"{before}{begin}\n{render(json.loads(file.read_text(encoding='utf-8')))}\n{end}{after}"
    return page


if __name__ == "__main__":
    made = fill((HERE / "README.md").read_text(encoding="utf-8"), HERE / "results")
    if "--write" in sys.argv:
        (HERE / "README.md").write_text(made, encoding="utf-8")
    else:
        print(made)

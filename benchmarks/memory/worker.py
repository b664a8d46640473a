"""One rank of one measured configuration: `worker.py CASE.json FOLDER`, in a fresh process.

Prints `MEASURED {...}`: bytes resident before loading, after loading and when training starts, and the two peaks
(VmHWM, reset once between loading and training through /proc/self/clear_refs).
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
)

from cases import CHILDREN, Case

from finetune import artifacts, base, loop, ranks
from finetune.artifacts import Artifact
from finetune.config import Recipe
from finetune.memory import here, settle
from finetune.train import identity

_ROWS = 12


class Silent:
    def log(self, *_: Any) -> None:
        pass


def resident(field: str = "VmRSS") -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def main(case: Case, folder: Path) -> dict[str, int]:
    recipe = settle(case.recipe(), here(folder), launched=ranks.world())
    if case.stage in CHILDREN:
        return run_child(case, recipe, folder)
    prepared = prepare(folder / "prepared", case, recipe)
    found = base.find_base(recipe.model)
    marks: dict[str, int] = {}
    watch(marks)
    run_training(case, recipe, found, prepared, folder)
    return {**marks, "train_peak": resident("VmHWM")}


def run_child(case: Case, recipe: Recipe, folder: Path) -> dict[str, int]:
    """Its peak, or that of the largest process that it starts: EXPORT's weights are in llm-compressor's environment."""
    import children

    children.run(case, recipe, base.find_base(recipe.model), folder)
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"load_peak": 0, "train_peak": max(resident("VmHWM"), started)}


def make_inputs(case: Case, folder: Path, step: str) -> None:
    import children

    recipe = case.recipe()
    found = base.find_base(recipe.model)
    if step == "adapter":
        fresh_adapter(recipe, found, folder / "adapter")
    elif step == "merged":
        children.merge(found.path, folder / "adapter", folder / "merged")
    elif step == "answers":
        children.write_answers(folder, recipe, found.path)
    else:
        (folder / "prepared").mkdir()
        children.write_chats(folder / "prepared", case, recipe, found.path)


def watch(marks: dict[str, int]) -> None:
    """Note what is resident around loading and before the first step."""
    from finetune import dpo, sft

    load, train = base.load_base, loop.train

    def load_base(*args: Any, **kwargs: Any) -> Any:
        marks["before_load"] = resident()
        model = load(*args, **kwargs)
        marks["after_load"] = resident()
        return model

    def noted(*args: Any, **kwargs: Any) -> Any:
        marks["load_peak"], marks["before_train"] = resident("VmHWM"), resident()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return train(*args, **kwargs)

    sft.load_base = dpo.load_base = load_base  # type: ignore[attr-defined]
    loop.train = noted


def run_training(case: Case, recipe: Recipe, found: Artifact, prepared: Artifact, folder: Path) -> None:
    from finetune import dpo, sft

    live: dict[str, Any] = {"machine": recipe.machine, "tracker": Silent(), "say": print}
    inputs = {"base": found, "prepared": prepared}
    if case.stage == "dpo":
        inputs |= {"preferences": prepared, "adapter": fresh_adapter(recipe, found, folder / "adapter")}
        stage, fields = dpo.STAGE, dpo.Config
    else:
        stage, fields = (sft.SFT_STAGE, sft.Config) if case.stage == "sft" else (sft.CPT_STAGE, sft.CptConfig)
    ranks.build_together(stage, identity(recipe, fields), root=folder / "work", inputs=inputs, **live)


def prepare(directory: Path, case: Case, recipe: Recipe) -> Artifact:
    """What PREPARE would leave behind, every row as long as the recipe allows, a quarter of it supervised."""
    rows = max(_ROWS, 4 * case.rows * case.processes)
    if ranks.is_first() and not directory.exists():
        making = directory.with_name("making")
        making.mkdir(parents=True)
        if case.stage == "dpo":
            write_preferences(making / "preferences.jsonl", rows, case.length, recipe)
        else:
            write_rows(making, rows, case.length)
        making.rename(directory)
    while not directory.exists():
        import time

        time.sleep(0.1)
    return Artifact(directory, {"stage": "prepare", "digest": case.name, "facts": {}})


def write_rows(folder: Path, rows: int, length: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)  # noqa: S311 - data, not a secret
    made = []
    for number in range(rows):
        size = length - 4 * (number % 2)  # or no batch would have any padding
        ids = [draw.randrange(100, 40_000) for _ in range(size)]
        labels = [-100] * (size - length // 4) + ids[size - length // 4 :]
        made.append({"id": f"row-{number}", "task": "t", "input_ids": ids, "labels": labels, "mode": "plain"})
    for name, count in (("train", rows), ("valid", 2)):
        pq.write_table(pa.Table.from_pylist(made[:count]), folder / f"sft_{name}.parquet")
        texts = [{"id": row["id"], "input_ids": row["input_ids"]} for row in made[:count]]
        pq.write_table(pa.Table.from_pylist(texts), folder / f"text_{name}.parquet")


def write_preferences(file: Path, rows: int, length: int, recipe: Recipe) -> None:
    """Short prompts, and two different answers that fill the row."""
    from finetune.chat import ChatFormat
    from finetune.corpus.records import Preference

    chat = ChatFormat.read(base.find_base(recipe.model).path)
    messages = [{"role": "user", "content": "Say many words."}]

    def tokens(answer: str) -> int:
        return len(chat.supervise([*messages, {"role": "assistant", "content": answer}]).input_ids)

    words = length - tokens("yes")
    lines = []
    for number in range(rows):
        pair = {}
        for side, word in (("chosen", " yes"), ("rejected", " no")):
            answer = f"{number % 10}" + word * words
            while tokens(answer) > length:
                answer = answer.removesuffix(word)
            pair[side] = {"role": "assistant", "content": answer}
        made = Preference(
            id=f"pair-{number}", task="t", group="g", messages=tuple(messages), origin="ready", score_chosen=1.0,
            score_rejected=0.0, **pair,
        )  # fmt: skip
        lines.append(f"{made.to_json()}\n")
    file.write_text("".join(lines), encoding="utf-8")


def fresh_adapter(recipe: Recipe, found: Artifact, directory: Path) -> Artifact:
    """An adapter as SFT would publish it, made without training and without loading the base's weights."""
    artifact = Artifact(directory, {"stage": "sft", "digest": "fresh", "facts": {"quantised_modules": []}})
    if ranks.is_first() and not directory.exists():
        making = directory.with_name("making-adapter")
        code = (
            "import sys, json, torch\n"
            "from transformers import AutoConfig, AutoModelForCausalLM\n"
            "from peft import LoraConfig, get_peft_model\n"
            "with torch.device('meta'):\n"
            "    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))\n"
            "    model = get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', **json.loads(sys.argv[2])))\n"
            "model = model.to_empty(device='cpu')\n"
            "for name, p in model.named_parameters():\n"
            "    if 'lora_' in name: torch.nn.init.normal_(p.data, std=0.01)\n"
            "model.save_pretrained(sys.argv[3])\n"
        )
        command = [sys.executable, "-c", code, str(found.path), json.dumps(recipe.method.lora), str(making)]
        subprocess.run(command, check=True, env=ranks.without_launcher(os.environ))
        making.rename(directory)
    while not directory.exists():
        import time

        time.sleep(0.1)
    return artifact


if __name__ == "__main__":
    asked = Case(**json.loads(sys.argv[1]))
    if len(sys.argv) > 3:
        make_inputs(asked, Path(sys.argv[2]), sys.argv[3])
    else:
        measured = main(asked, Path(sys.argv[2]))
        print("MEASURED " + artifacts.canonical_json(measured), flush=True)

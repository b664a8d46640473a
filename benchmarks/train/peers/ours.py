"""This project: the documented command, in a work folder of its own.

direct: `python finetune/train.py`, fresh folder, so that a start includes PREPARE.
launch: the same through `accelerate launch`, as the README shows it.
prepared: the same as direct, in a folder where PREPARE has been done.
"""

import shutil
from pathlib import Path

from benchmarks.train.job import LORA, ROOT, SFT, Command, Job

VARIANTS = ("direct", "launch", "prepared")


def words(work: Path, stages: str, seed: int = 0) -> list[str]:
    """One task of 480 rows and nothing else, no checkpoint or evaluation inside the measured steps; no tracker, as the
    others. `seed` also draws which rows are trained and which are held out."""
    return [
        "recipe=maintenance", "model=smollm2_135m", "machine=cpu", f"work={work}", f"stages=[{stages}]",
        f"seed={seed}", "tasks.fields.train_rows=480", "~tasks.place", "replay=null", "dpo.pairs.prompts=160",
        "dpo.max_steps=16",
        f"method.lora.r={LORA['r']}", f"method.lora.lora_alpha={LORA['lora_alpha']}",
        f"sft.trl.learning_rate={SFT['learning_rate']}",
        "tracking=disabled", "sft.save_steps=1000", "sft.eval_steps=1000", "dpo.save_steps=1000",
    ]


def command(job: Job) -> Command:
    """`job.rows.parent / "whole"` is the work folder of the run that made the rows; its finished stages are copied."""
    kept = {"sft": ("prepare",), "dpo": ("prepare", "sft", "pairs")}[job.kind]
    if job.kind == "dpo" or job.variant == "prepared":
        for stage in kept:
            for done in (job.rows.parent / "whole").glob(f"{stage}-*"):
                if not done.name.endswith(".partial"):
                    shutil.copytree(done, job.out / done.name, dirs_exist_ok=True)
    python = ROOT / ".venv/bin"
    launcher = [str(python / "accelerate"), "launch"] if job.variant == "launch" else [str(python / "python")]
    stages = "sft" if job.kind == "sft" else "sft,dpo"
    program = str(ROOT / "finetune/train.py")
    return Command([*launcher, program, *words(job.out, stages, job.seed)], adapter=job.out, at=ROOT)

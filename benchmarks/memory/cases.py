"""The configurations that are measured: each is one training stage, or one child, in fresh processes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from finetune.config import Recipe, load

CHILDREN = ("score", "pairs", "bases", "merge", "proof", "export")
LAYOUTS = {"single": "cpu", "ddp": "cpu_ddpx2", "zero3": "cpu_zero3x2"}


@dataclass(frozen=True)
class Case:
    stage: str
    """sft, dpo or cpt; or one of CHILDREN: the child's whole run."""
    model: str
    dtype: str
    method: str
    layout: str
    rows: int
    """Rows of one device in one forward; of a child: prompts, all in one batch."""
    length: int
    """Every row, or prompt, has so many tokens: what the planner counts with."""
    checkpointing: bool = False
    attention: str = "sdpa"

    @property
    def name(self) -> str:
        parts = [self.stage, self.model, self.dtype, self.method, self.layout, f"{self.rows}x{self.length}"]
        return "-".join([*parts, self.attention, *(["checkpointing"] if self.checkpointing else [])])

    @property
    def processes(self) -> int:
        return 1 if self.layout == "single" else 2

    @property
    def steps(self) -> tuple[str, ...]:
        """What a child reads is made first, by processes of their own (children.py)."""
        if self.stage not in CHILDREN:
            return ()
        merged = ("merged",) if self.stage in ("score", "proof", "export") else ()
        return ("adapter", "chats", *merged, *(("answers",) if self.stage == "export" else ()))

    def recipe(self) -> Recipe:
        """As a user would type it."""
        if self.stage in CHILDREN:
            return self._child()
        trained = self.stage if self.stage in ("cpt", "sft", "dpo") else "sft"
        stages = "[sft,dpo]" if trained == "dpo" else f"[{trained}]"
        sections = ("sft", "dpo") if trained == "dpo" else (trained,)
        words = [
            "recipe=legal", f"model={self.model}", f"model.dtype={self.dtype}", f"method={self.method}",
            f"machine={LAYOUTS[self.layout]}", f"stages={stages}", f"model.attn_implementation={self.attention}",
            f"machine.per_device_batch_size={self.rows}", "machine.threads=1",
            f"machine.gradient_checkpointing={str(self.checkpointing).lower()}",
        ]
        for section in sections:
            words += [
                f"{section}.batch_size={self.rows * self.processes}", f"{section}.max_length={self.length}",
                f"{section}.max_steps=2", f"{section}.save_steps=2", f"{section}.eval_steps=2",
            ]
        return load(words)

    def _child(self) -> Recipe:
        each = 4 if self.stage == "pairs" else 1
        return load([
            "recipe=maintenance", f"model={self.model}", f"model.dtype={self.dtype}", f"method={self.method}",
            "machine=cpu", "machine.threads=1", f"model.attn_implementation={self.attention}", "~tasks.place",
            f"tasks.fields.test_rows={self.rows}", f"score.batch_tokens={self.rows * self.length}",
            f"score.parity_prompts={self.rows}", "score.general_tokens=2048", f"dpo.pairs.samples={each}",
            f"dpo.pairs.prompts={self.rows // each}", "dpo.pairs.eval_prompts=0", f"sft.max_length={self.length}",
            f"dpo.max_length={self.length}", "stages=[sft,dpo]",
            *(["export=[w4a16,w8a8]", f"quantise.rows={self.rows}"] if self.stage == "export" else []),
        ])  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cases() -> Iterator[Case]:
    """One process over sizes, number formats and methods; two processes; children."""
    small, tiny = "smollm2_135m", "tiny_qwen3"
    for rows, length in ((8, 256), (1, 256), (2, 1024), (16, 64)):
        yield Case("sft", small, "bfloat16", "lora", "single", rows, length)
    yield Case("sft", small, "bfloat16", "lora", "ddp", 2, 256)
    yield Case("sft", small, "bfloat16", "lora", "zero3", 2, 256)
    yield Case("dpo", small, "bfloat16", "lora", "single", 2, 256)
    yield Case("sft", tiny, "float32", "lora", "single", 4, 512)
    yield Case("sft", small, "bfloat16", "qlora", "single", 4, 256)
    yield Case("sft", small, "bfloat16", "lora", "single", 4, 512, checkpointing=True)
    yield Case("sft", small, "bfloat16", "lora", "single", 4, 512, attention="eager")
    yield Case("sft", small, "float32", "lora", "single", 4, 512)
    yield Case("sft", small, "float32", "lora", "single", 8, 64)
    yield Case("sft", small, "float32", "qlora", "single", 4, 256)
    yield Case("sft", small, "bfloat16", "qlora", "ddp", 2, 256)
    yield Case("sft", small, "bfloat16", "qlora", "zero3", 2, 256)
    for layout in ("single", "ddp", "zero3"):
        for method in ("lora", "qlora"):
            yield Case("sft", tiny, "float32", method, layout, 2, 512)
            yield Case("dpo", tiny, "float32", method, layout, 2, 256)
    yield Case("sft", tiny, "float32", "lora", "single", 8, 1024)
    yield Case("sft", small, "bfloat16", "lora", "single", 8, 256, attention="eager")
    yield Case("sft", small, "bfloat16", "lora", "single", 8, 128, checkpointing=True)
    yield Case("sft", small, "float32", "lora", "single", 2, 1024, checkpointing=True)
    yield Case("cpt", small, "bfloat16", "lora", "single", 2, 512)
    yield Case("dpo", small, "bfloat16", "qlora", "single", 2, 256)
    yield Case("dpo", small, "float32", "lora", "single", 2, 128)
    yield Case("dpo", small, "bfloat16", "lora", "single", 1, 512, attention="eager")
    yield Case("dpo", small, "bfloat16", "lora", "ddp", 2, 256)
    yield Case("dpo", small, "bfloat16", "lora", "zero3", 2, 256)
    yield Case("sft", small, "float32", "lora", "ddp", 2, 256)
    yield Case("sft", small, "float32", "lora", "zero3", 2, 256)
    yield Case("sft", small, "bfloat16", "lora", "zero3", 2, 256, checkpointing=True)
    for stage in ("score", "pairs"):
        for rows, length in ((32, 128), (64, 64), (8, 512)):
            yield Case(stage, small, "bfloat16", "lora", "single", rows, length)
        yield Case(stage, small, "float32", "lora", "single", 16, 128)
        yield Case(stage, small, "bfloat16", "qlora", "single", 16, 128)
        yield Case(stage, tiny, "float32", "lora", "single", 32, 128)
    for stage in ("merge", "proof"):
        yield Case(stage, small, "bfloat16", "lora", "single", 8, 128)
        yield Case(stage, small, "float32", "lora", "single", 8, 128)
        yield Case(stage, small, "bfloat16", "qlora", "single", 8, 128)
        yield Case(stage, tiny, "float32", "lora", "single", 8, 128)
    for rows, length in ((8, 128), (24, 256)):
        yield Case("bases", small, "bfloat16", "qlora", "single", rows, length)
    yield Case("bases", small, "float32", "qlora", "single", 8, 128)
    yield Case("bases", tiny, "float32", "qlora", "single", 8, 128)
    yield Case("proof", small, "bfloat16", "lora", "single", 16, 512)
    yield Case("export", small, "bfloat16", "lora", "single", 8, 128)
    yield Case("export", tiny, "float32", "lora", "single", 8, 128)

"""Stage BASES, for QLoRA: which base the adapter belongs on, measured. MERGE takes its choice.

An adapter trained on a 4-bit base can be merged into the base as it is, or into what its 4-bit modules really computed
with. Opinions differ (peft#2105, trl#1324): so the adapter on its 4-bit base is held against the merge into either one,
on real prompts, teacher-forced on its own greedy answers, and the closer one is taken.

One model is in memory, the 4-bit one that training used: it answers and gives the logits to compare with; then each
candidate's matrices are read, merged and let go while a batch passes through it. All in float32 arithmetic, because
the rounding of bfloat16 kernels alone is larger than what is measured.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune import parity
from finetune.adapter import Adapter
from finetune.artifacts import Artifact, Stage, write_whole
from finetune.asked import Asked
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.errors import RecipeError
from finetune.exact import compute_in_float32, merged
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED, RoundTrip

Say = Callable[[str], None]
_PROMPTS = 24
"""At most. The two bases differ by a factor, not by a few per cent: a sample is enough, PROOF asks more."""
BATCH_TOKENS = 16384
"""All prompts pass through the model together: a candidate's matrix is read, quantised and merged once, which is hours
at 32 billion parameters if it has to be done for every batch."""


class Config(Section):
    """What changes what is measured."""

    model: Model
    method: Method


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, prepared: Artifact, adapter: Artifact, machine: Machine,
    say: Say = print,
) -> dict[str, Any]:
    """Write bases.json: {chosen, bases: [{name, kl_mean, kl_max, top1, chosen}], n_prompts, n_positions, round_trip}.

    Raises RecipeError when what is recorded of the 4-bit base is not what the base is when it is loaded.
    """
    settings = Config.model_validate(config)
    set_threads(machine)
    device = device_of(machine)
    asked = Asked.choose(prepared, base, _PROMPTS).within(BATCH_TOKENS)
    model = load_adapter(load_base(base, settings.model, settings.method, device=device), adapter)
    trip = check_recorded(RoundTrip.of(adapter.facts), RoundTrip.seen(model), adapter)

    say(f"bases: the adapter answers {len(asked.prompts)} prompts on its 4-bit base")
    kept, logits = out / ".answers.jsonl", out / ".logits"
    answers = asked.answers(model, BATCH_TOKENS, kept)
    compute_in_float32(model)
    parity.store(model, asked.prompts, answers, logits, batch_tokens=BATCH_TOKENS)
    plain = model.unload()
    own = Adapter.read(adapter.path)
    found: dict[str, dict[str, Any]] = {}
    for name, used in ((ROUND_TRIPPED, trip), (AS_IT_IS, None)):
        compute_in_float32(plain, merged(base.path, own, used))
        found[name] = parity.compare(
            plain, asked.prompts, answers, logits, asked.ids, "float32", batch_tokens=BATCH_TOKENS
        )
        say(f"bases: merged into the base {name}: mean KL {found[name]['kl_mean']:.3g} nats")
    logits.unlink()
    kept.unlink()

    chosen = min(found, key=lambda name: found[name]["kl_mean"])
    written = {
        "chosen": chosen,
        "bases": [
            {"name": name, **{key: one[key] for key in ("kl_mean", "kl_max", "top1")}, "chosen": name == chosen}
            for name, one in found.items()
        ],
        **{key: found[chosen][key] for key in ("n_prompts", "n_positions", "over")},
        "arithmetic": "float32",
        "round_trip": trip.describe(),
    }
    write_whole(out / "bases.json", json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return {"chosen": chosen, "kl_mean": {name: one["kl_mean"] for name, one in found.items()}}


def check_recorded(recorded: RoundTrip | None, seen: RoundTrip | None, adapter: Artifact) -> RoundTrip:
    """What training recorded of its 4-bit base, when the base is the same now; a RecipeError when it is not."""
    if recorded is None or seen is None:
        raise RecipeError.one(
            str(adapter.path), None,
            "the adapter was not trained on a 4-bit base" if recorded is None else "no module of the base is 4-bit now",
            "use the method that the adapter was trained with",
        )  # fmt: skip
    for name in recorded.differs_from(seen):
        was, now = recorded.describe()[name], seen.describe()[name]
        if name == "modules":
            was, now = sorted(set(was) - set(now))[:5], sorted(set(now) - set(was))[:5]
        raise RecipeError.one(
            f"{adapter.path}: four_bit.{name}", was, f"the 4-bit base has {now} here, so it is not the one trained on",
            "use the method.bnb, the versions and the base that the adapter was trained with",
        )  # fmt: skip
    return recorded


STAGE = Stage("bases", 1, run)

"""What a run does not use is not imported, and what it uses is."""

import json
import subprocess
import sys

import pytest

from finetune.libraries import unused

SCRIPT = """
import gc, importlib.metadata, json, sys
from finetune.libraries import leave_out, load
leave_out({names!r})
asked, read = [], importlib.metadata.packages_distributions
importlib.metadata.packages_distributions = lambda: asked.append(1) or read()
load("trl.trainer.sft_trainer")
loaded = [n for n in ("bitsandbytes", "deepspeed", "wandb") if sys.modules.get(n)]
import wandb
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 100_000, len(asked), loaded]))
"""


def test_a_run_names_what_it_does_not_use() -> None:
    assert unused(bnb=False, zero3=False) == ["bitsandbytes", "deepspeed"]
    assert unused(bnb=True, zero3=False) == ["deepspeed"]
    assert unused(bnb=False, zero3=True, optimizers=["adamw_torch_fused"]) == ["bitsandbytes"]
    assert unused(bnb=False, zero3=True, optimizers=["adamw_torch", "paged_adamw_8bit"]) == []


@pytest.mark.slow
def test_what_is_left_out_is_not_imported_and_the_collector_is_on_again() -> None:
    found = {}
    for names in ([], ["bitsandbytes", "deepspeed"]):
        command = [sys.executable, "-c", SCRIPT.format(names=names)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        found[len(names)] = json.loads(done.stdout.splitlines()[-1])
    assert found[0] == [True, True, 1, ["bitsandbytes"]]  # else there would be nothing to leave out any more
    assert found[2] == [True, True, 1, []]


def test_bitsandbytes_says_nothing_of_a_kernel_that_it_would_fetch() -> None:
    """In every child and in `finetune merge`: a reader must not learn to skip over warnings."""
    script = "from finetune.libraries import bitsandbytes; bitsandbytes().quantize_4bit"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

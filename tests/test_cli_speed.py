"""`finetune plan` and `finetune --help` answer within a second of CPU time, without torch."""

import json
import subprocess
import sys

import pytest

PROBE = """
import resource, sys, time
from finetune.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as done:
    code = done.code
used = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
heavy = sorted({"torch", "transformers", "trl", "peft", "datasets", "deepspeed", "wandb"} & set(sys.modules))
seconds = used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime
import json
print("\\n" + json.dumps({"code": code, "seconds": seconds, "heavy": heavy}))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["plan", "recipe=legal", "model=qwen3_32b", "machine=a100x8"],
        ["plan", "recipe=legal", "model=qwen3_32b", "machine=a100x8", "--json"],
        ["plan", "recipe=legal", "model=qwen3_32b", "machine=cpu"],
        ["plan", "recipe=legal", "model=smollm2_135m"],
        ["plan", "recipe=legal", "sft.trl.learnin_rate=1"],
    ],
)
def test_planning_takes_under_a_second_of_cpu_time_and_no_torch(words):
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["heavy"] == []
    assert facts["seconds"] < 1.0
    assert facts["code"] in (0, 2, None)
    assert "Traceback" not in done.stderr

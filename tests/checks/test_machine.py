"""Machines that contradict themselves, the launcher or what is here are refused."""

import pytest

from tests.checks.composed import CPU, EIGHT, LARGE, SMALL, only, problems

MACHINES = {
    "many in one": ({"machine.layout": "single", "machine.deepspeed": None}, "machine.layout", "ddp or zero3"),
    "DeepSpeed beside DDP": ({"machine.layout": "ddp"}, "machine.deepspeed", "machine.deepspeed=null"),
    "ZeRO-3 without DeepSpeed": ({"machine.deepspeed": None}, "machine.deepspeed", "a100x8.yaml"),
    "ZeRO-2": (
        {"machine.deepspeed.zero_optimization.stage": 2}, "machine.deepspeed.zero_optimization.stage", "stage=3",
    ),
    "DeepSpeed's optimiser": (
        {"machine.deepspeed.optimizer": {"type": "AdamW"}}, "machine.deepspeed.optimizer", "dpo.trl.optim",
    ),
    "a schedule beside the recipe's": (
        {"machine.deepspeed.scheduler": {"type": "WarmupLR"}}, "machine.deepspeed.scheduler", "trl.lr_scheduler_type",
    ),
    "flash attention in float32": (
        {"model.attn_implementation": "flash_attention_2", "model.dtype": "float32"}, "model.attn_implementation",
        "model.dtype=bfloat16",
    ),
    "float16": ({"machine.deepspeed.fp16": {"enabled": True}}, "machine.deepspeed.fp16", "model.dtype"),
    "batch in the DeepSpeed config": (
        {"machine.deepspeed.train_batch_size": 64}, "machine.deepspeed.train_batch_size", "train_batch_size=auto",
    ),
    "GPU of unknown memory": ({"machine.gpu_memory_gib": None}, "machine.gpu_memory_gib", "80"),
    "DoRA on a 4-bit base under ZeRO-3": (
        {"method.name": "qlora", "method.bnb": {"load_in_4bit": True}, "method.lora.use_dora": True},
        "method.lora.use_dora", "machine.layout=ddp",
    ),
    "PiSSA under ZeRO-3": (
        {"method.lora.init_lora_weights": "pissa"}, "method.lora.init_lora_weights", "init_lora_weights=true",
    ),
    "Slurm without a partition": (
        {"machine.prepare.engine": "slurm", "machine.prepare.time": "01:00:00"}, "machine.prepare.partition",
        "machine.prepare.partition=cpu",
    ),
    "a time limit without Slurm": (
        {"machine.prepare.time": "01:00:00"}, "machine.prepare.time", "machine.prepare.engine=slurm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MACHINES)
def test_a_machine_that_contradicts_itself_is_refused(case):
    changes, path, fix = MACHINES[case]
    problem = only(changes, LARGE)
    assert problem.path == path
    assert fix in problem.fix


def test_nodes_that_do_not_divide_the_processes_are_refused():
    assert only({"machine.nodes": 3, "machine.per_device_batch_size": 1}, LARGE).path == "machine.processes"


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (SMALL, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
        (LARGE, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}),
        (LARGE, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        (LARGE, {"ACCELERATE_USE_FSDP": "true"}),
        (LARGE, {"ACCELERATE_MIXED_PRECISION": "fp16"}),
        (("model=tiny_qwen3", "machine=cpu"), {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    ],
)
def test_a_second_owner_in_the_accelerate_config_is_refused(words, environment):
    assert only({}, words, environment).path == "accelerate launch"


def test_accelerates_own_zero3_switch_is_no_second_owner():
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert problems({}, LARGE, environment) == []


def test_a_machine_without_the_gpus_is_refused_only_when_it_is_this_one():
    assert problems({}, LARGE) == []
    problem = only({}, LARGE, here=CPU)
    assert problem.path == "machine"
    assert "wants 8 GPUs on each node, here are 0" in problem.rule
    assert "finetune plan recipe=maintenance machine=a100x8" in problem.fix


def test_flash_attention_is_refused_when_auto_finds_no_gpu():
    words = ("model=smollm2_135m", "machine=auto")
    flash = {"model.attn_implementation": "flash_attention_2"}
    assert problems(flash, words) == []
    assert only(flash, words, here=CPU).path == "model.attn_implementation"
    assert problems(flash, words, here=EIGHT, launched=8) == []


def test_a_launcher_with_another_number_of_processes_is_refused():
    assert problems({}, LARGE, here=EIGHT, launched=8) == []
    problem = only({}, LARGE, here=EIGHT, launched=4)
    assert "wants 8 processes, 4 were started" in problem.rule
    assert "accelerate launch --num_processes 8" in problem.fix


def test_one_process_that_sees_several_gpus_is_told_how_to_use_them():
    """The Trainer would put the model into nn.DataParallel, and TRL refuses that after everything was loaded."""
    words = ("model=smollm2_135m", "machine=auto")
    problem = only({}, words, here=EIGHT, launched=1)
    assert "one process sees 8 GPUs" in problem.rule
    assert "CUDA_VISIBLE_DEVICES=0" in problem.fix
    assert "accelerate launch --num_processes 8" in problem.fix
    assert problems({}, words, here=EIGHT, launched=8) == []
    assert problems({}, words, here=EIGHT) == []


def test_a_cpu_machine_of_two_processes_is_started_with_torchrun():
    problem = only({}, ("model=tiny_qwen3", "machine=cpu_zero3x2"), here=CPU, launched=1)
    assert problem.fix.startswith("torchrun --nproc_per_node 2 finetune/train.py")

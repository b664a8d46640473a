"""The keys read with `ast` are the keys that the imported classes have."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from finetune.config.upstream import (
    divergent_losses,
    dpo_divergences,
    dpo_losses,
    field_annotations,
    optimizer_names,
    owner,
    scheduler_names,
)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("SFTConfig", {"learning_rate", "packing", "max_length", "gradient_checkpointing", "deepspeed"}),
        ("DPOConfig", {"beta", "loss_type", "learning_rate", "precompute_ref_log_probs"}),
        ("LoraConfig", {"r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights", "task_type"}),
        ("BitsAndBytesConfig", {"load_in_4bit", "bnb_4bit_use_double_quant", "bnb_4bit_quant_type"}),
    ],
)
def test_well_known_keys_are_found(name, known):
    assert known <= set(field_annotations(name))


def test_annotations_are_upstreams_own_words():
    assert field_annotations("LoraConfig")["lora_dropout"] == "float"
    assert field_annotations("SFTConfig")["max_length"] == "int | None"


def test_owner_names_package_and_class():
    assert owner("SFTConfig") == "trl.SFTConfig"
    assert owner("BitsAndBytesConfig") == "transformers.BitsAndBytesConfig"


def test_reading_keys_imports_none_of_the_packages():
    code = (
        "import sys; from finetune.config.upstream import field_annotations as f\n"
        "for n in ('SFTConfig', 'DPOConfig', 'LoraConfig', 'BitsAndBytesConfig'): f(n)\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'bitsandbytes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_keys_read_from_source_equal_the_imported_classes():
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import DPOConfig, SFTConfig

    for cls in (SFTConfig, DPOConfig, LoraConfig):
        assert set(field_annotations(cls.__name__)) == {f.name for f in dataclasses.fields(cls) if f.init}
    arguments = [
        p.name for p in inspect.signature(BitsAndBytesConfig).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    assert list(field_annotations("BitsAndBytesConfig")) == arguments


@pytest.mark.slow
def test_names_of_schedules_optimizers_and_losses_equal_upstreams():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames
    from trl import DPOConfig

    assert set(scheduler_names()) == {str(item.value) for item in SchedulerType}
    assert set(optimizer_names()) == {str(item.value) for item in OptimizerNames}
    text = next(f for f in dataclasses.fields(DPOConfig) if f.name == "loss_type").metadata["help"]
    assert set(dpo_losses()) == set(re.findall(r"`'(\w+)'`", text))
    text = next(f for f in dataclasses.fields(DPOConfig) if f.name == "f_divergence_type").metadata["help"]
    assert set(dpo_divergences()) == set(re.findall(r"`(\w+)`", text))
    assert set(divergent_losses()) == set(re.findall(r"`'(\w+)'`", text))

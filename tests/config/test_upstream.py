"""The keys read with `ast` are the keys that the imported classes have."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

from finetune.config.upstream import field_annotations, owner


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

"""Keys that are handed on to upstream: what is refused among them, and with which reason."""

import pytest

from finetune.config.upstream import field_annotations
from tests.checks.composed import only, problems


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("average_tokens_across_devices", False), ("chat_template_path", "other/model"), ("shuffle_dataset", True),
        ("eval_on_start", True), ("save_on_each_node", True), ("trust_remote_code", True),
        ("ddp_find_unused_parameters", True),
    ],
)
def test_a_key_that_would_change_the_data_the_loss_or_what_is_saved_is_refused(key, value):
    problem = only({f"sft.trl.{key}": value})
    assert (problem.path, problem.rule) == (f"sft.trl.{key}", "is set by the toolkit")


def test_keys_without_any_effect_here_are_refused_with_the_reason():
    keys = {
        "hub_private_repo": True, "hub_strategy": "end", "hub_always_push": True, "hub_revision": "main",
        "trackio_space_id": "a/b", "trackio_bucket_id": "a/b", "trackio_static_space_id": "a/b",
        "logging_first_step": True, "include_num_input_tokens_seen": "all", "eval_delay": 3,
        "eval_do_concat_batches": False, "eval_use_gather_object": True, "eval_accumulation_steps": 2,
        "prediction_loss_only": True, "include_for_metrics": ["loss"], "batch_eval_metrics": True,
        "liger_kernel_config": {"rope": True}, "length_column_name": "size", "dataloader_drop_last": True,
        "torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": "default",
    }  # fmt: skip
    assert set(keys) <= set(field_annotations("SFTConfig")), "a key that upstream has dropped is refused as unknown"
    found = problems({f"sft.trl.{key}": value for key, value in keys.items()})
    assert {problem.path for problem in found} == {f"sft.trl.{key}" for key in keys}
    assert {problem.rule for problem in found} == {"is set by the toolkit"}
    assert all(problem.fix.startswith(("drop it: ", "set sft.")) for problem in found)


def test_a_token_is_not_repeated_in_an_error():
    assert only({"sft.trl.hub_token": "hf_secret"}).value is None

"""The plan against arithmetic done another way, and what it says when something does not fit."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from finetune.checks import check
from finetune.config import load
from finetune.memory import Counted, Gpu, Here, StageState, here, plan, settle
from finetune.memory.machines import GIB

LAPTOP = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=500.0)
GIGANT = Here(gpus=(), cores=128, memory_gib=2048.0, disk_free_gib=5000.0)
WORKSTATION = Here(gpus=(Gpu("NVIDIA A100 80GB PCIe", 80.0),) * 4, cores=64, memory_gib=512.0, disk_free_gib=5000.0)
P, LORA, HEAD = 32_762_123_264, 134_217_728, 777_912_320


@functools.cache
def _loaded(words):
    return load(["recipe=legal", *words])


def planned(*words, on=LAPTOP, **known):
    return plan(settle(_loaded(words), on), **known)


def test_qwen3_32b_on_eight_a100_is_sharded_with_its_adapter_and_optimiser():
    found = planned("model=qwen3_32b", "machine=a100x8", "stages=[sft]")
    held = found.stages[0].bytes
    assert found.fits
    assert (found.parameters, found.lora_parameters) == (P, LORA)
    assert held.weights == P * 2 / 8
    assert held.adapter == held.gradients == LORA * 2 / 8
    assert held.optimiser == LORA * 12 / 8
    # DeepSpeed's defaults: 1.05 G parameters gathered at a time, but never less than the head and a layer
    # (here 0.778 + 0.488 G), and a bucket of 0.5 G elements, all in two bytes.
    # What is fetched ahead (50 M) is there twice while it is copied out of its message.
    assert held.buffers == 2 * (HEAD + 487_587_840 + 50_000_000) + 2 * 500_000_000
    assert held.load_peak == held.weights
    # Checkpointing keeps the 64 layers' inputs; the rest is one recomputed layer with its gradients.
    tokens = found.per_device_batch_size * _loaded(("model=qwen3_32b", "machine=a100x8", "stages=[sft]")).sft.max_length
    inputs = tokens * 64 * 5120 * 2
    assert inputs < held.activations < 2.5 * inputs


def test_qlora_of_qwen3_32b_holds_the_whole_4_bit_model_on_every_gpu_while_loading():
    linear = 64 * 487_587_840
    whole = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * (P - linear)
    ddp = planned("model=qwen3_32b", "machine=a100x8", "method=qlora", "machine.layout=ddp", "machine.deepspeed=null")
    sharded = planned("model=qwen3_32b", "machine=a100x8", "method=qlora")
    assert ddp.stages[0].bytes.weights == pytest.approx(whole, abs=1)
    assert sharded.stages[0].bytes.weights == pytest.approx(whole / 8, abs=1)
    assert sharded.stages[0].bytes.load_peak == ddp.stages[0].bytes.load_peak == pytest.approx(whole, abs=1)
    assert ddp.stages[0].bytes.optimiser == LORA * 8
    assert ddp.fits
    assert sharded.fits
    assert any("machine.layout=ddp" in word for word in sharded.advice)


def test_an_offloaded_base_is_held_by_the_host():
    found = planned("model=qwen3_32b", "machine=a100x4_offload")
    assert found.stages[0].bytes.weights == 0
    assert found.host > P * 2


def test_an_offloaded_optimiser_is_held_by_the_host_too():
    offload = "machine.deepspeed.zero_optimization.offload_optimizer={device:cpu}"
    found = planned("model=qwen3_32b", "machine=a100x4_offload", f"+{offload}")
    held = found.stages[0].bytes
    assert (held.weights, held.optimiser) == (0, 0)
    assert held.offloaded == P * 2 / 4 + LORA * 12 / 4


def test_devices_that_share_the_tokens_of_a_row_hold_their_part_of_the_activations():
    recomputed = ("machine.per_device_batch_size=1", "machine.gradient_checkpointing=true")
    words = ("model=qwen3_32b", "machine=h100x8_ulysses", "stages=[sft]", *recomputed)
    parts, whole = planned(*words).stages[0], planned(*words, "machine.sequence_parallel=1").stages[0]
    sp = _loaded(words).machine.sequence_parallel
    assert sp > 1
    assert parts.bytes.activations * sp == whole.bytes.activations
    assert parts.bytes.weights == whole.bytes.weights
    assert parts.accumulation == whole.accumulation * sp
    assert planned(*words[:3]).fits


def test_the_best_layout_gathers_nothing_before_it_rounds_nothing_and_leaves_room():
    assert (best := planned("model=qwen3_32b", "machine=a100x8").best) is not None
    assert (best.method, best.layout) == ("lora", "zero3")
    small = planned("model=smollm2_135m", on=WORKSTATION).best
    assert small is not None
    assert (small.method, small.layout) == ("lora", "ddp")
    assert planned("model=smollm2_135m", "machine=cpu").best is None


def test_a_packed_batch_holds_full_packs():
    words = ("model=smollm2_135m", "machine=cpu", "stages=[sft]", "sft.max_steps=null")
    counted = {"sft": Counted(400, 400 * 64, 100)}
    loose = planned(*words, counted=counted).stages[0]
    packed = planned(*words, "sft.packing=true", counted=counted).stages[0]
    limit = _loaded(words).sft.max_length
    assert (loose.longest, packed.longest) == (100, limit)
    assert packed.steps == -(-400 * 64 // limit // 8) < loose.steps


def test_saving_gathers_the_adapter_and_nothing_else():
    assert planned("model=qwen3_32b", "machine=a100x8").save_peak == LORA * 2
    words = ("model=qwen3_32b", "method=qlora", "machine=a100x8", "machine.layout=ddp", "machine.deepspeed=null")
    assert planned(*words).save_peak == LORA * 4, "only ZeRO-3 gives the adapter the type of the base"


@pytest.mark.parametrize(("layout", "adapter", "state"), [("zero3", 2, 12), ("ddp", 4, 8)])
def test_disk_holds_adapters_in_the_type_that_they_are_trained_in(layout, adapter, state):
    drop = ["machine.deepspeed=null"] if layout == "ddp" else []
    found = planned("model=qwen3_32b", "method=qlora", "machine=a100x8", f"machine.layout={layout}", *drop)
    assert found.disk["adapters"] == len(found.stages) * LORA * adapter
    assert found.disk["checkpoints"] == 2 * LORA * (adapter + state)


def test_disk_holds_the_download_and_the_merged_model_once_each():
    disk = planned("model=qwen3_32b", "machine=a100x8").disk
    assert disk["download"] == disk["merged"] == P * 2
    assert disk["bundle"] == 0
    assert planned("model=smollm2_135m", "machine=cpu").disk["download"] == 0


def test_a_model_that_is_already_in_the_hubs_cache_is_not_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recipe = _loaded(("model=qwen3_32b", "machine=a100x8"))
    snapshot = tmp_path / "models--Qwen--Qwen3-32B" / "snapshots" / recipe.model.revision
    snapshot.mkdir(parents=True)
    assert planned("model=qwen3_32b", "machine=a100x8").disk["download"] == P * 2
    (snapshot / "config.json").write_text("{}")
    assert planned("model=qwen3_32b", "machine=a100x8").disk["download"] == 0


def test_a_full_disk_is_a_problem_only_for_the_machine_that_is_asked():
    full = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=0.1)
    assert planned("model=smollm2_135m", "machine=cpu", on=full).fits
    found = planned("model=smollm2_135m", "machine=cpu", on=full, here=full)
    assert [problem.path for problem in found.problems] == ["work"]
    assert "0.1 GiB is free" in found.problems[0].rule


def test_counted_tokens_replace_the_upper_limits():
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft]")
    limit, counted = planned(*words), planned(*words, counted={"sft": Counted(320, 32_000, None)})
    epochs = _loaded(words).sft.trl["num_train_epochs"]
    assert counted.tokens_known
    assert not limit.tokens_known
    assert counted.stages[0].steps == 320 * epochs / 32
    assert counted.stages[0].tokens == 32_000 * epochs
    assert counted.hours < limit.hours


def test_without_steps_and_epochs_one_epoch_is_planned_as_it_is_trained():
    words = ("model=smollm2_135m", "machine=cpu", "stages=[sft]", "sft.max_steps=null")
    assert planned(*words, counted={"sft": Counted(464, None, None)}).stages[0].steps == 464 / 8


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_replay_comes_on_top_of_the_rows_of_the_tasks(share):
    words = ("model=smollm2_135m", "machine=cpu")
    tasks = sum(task.train_rows for task in _loaded(words).tasks.values())
    assert planned(*words, f"replay.share={share}").stages[0].rows == tasks + round(share * tasks)


def test_hours_follow_from_flops_utilisation_and_price():
    found = planned(
        "model=qwen3_32b", "machine=a100x8", "stages=[sft]",
        counted={"sft": Counted(32_000, 32_000_000, None)},
    )
    # Three passes (forward, recomputed forward, backward without weight gradients) of 2 FLOPs for each weight.
    least = found.stages[0].tokens * 6 * (P - HEAD)
    assert least < found.stages[0].flops < 1.1 * least
    assert found.hours == pytest.approx(found.stages[0].flops / (8 * 312e12 * 0.4) / 3600)
    assert found.usd == pytest.approx(found.hours * 8 * 2.0)


def test_dpo_counts_two_sequences_and_no_reference_in_memory():
    sft, dpo = planned("model=qwen3_32b", "machine=a100x8", "stages=[sft,dpo]").stages
    assert (dpo.bytes.weights, dpo.bytes.adapter) == (sft.bytes.weights, sft.bytes.adapter)
    ratio = _loaded(("model=qwen3_32b", "machine=a100x8", "stages=[sft,dpo]"))
    assert dpo.bytes.activations / sft.bytes.activations == 2 * ratio.dpo.max_length / ratio.sft.max_length


def test_dpo_scores_its_reference_once_for_every_pair_and_not_in_every_step():
    """Costs of one, two and five epochs over the same pairs lie on a line that starts above zero."""
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft,dpo]", "dpo.eval_steps=1000000")
    counted = {"dpo": Counted(640, 640 * 1000, 600, 0)}
    one, two, five = (
        planned(*words, f"dpo.trl.num_train_epochs={epochs}", counted=counted).stages[1] for epochs in (1, 2, 5)
    )
    assert (one.tokens, two.tokens, five.tokens) == (640_000, 1_280_000, 3_200_000)
    step = two.flops - one.flops
    assert five.flops - two.flops == pytest.approx(3 * step)
    # Recomputed, a step makes three passes of the weights, the reference one; attention shifts it by less than 1 %.
    assert one.flops - step == pytest.approx(step / 3, rel=0.01)


@pytest.mark.parametrize("on", [LAPTOP, GIGANT])
def test_a_machine_without_gpu_is_told_what_to_type_instead(on):
    found = planned("model=qwen3_32b", on=on)
    assert not found.fits
    assert found.machine.device == "cpu"
    assert "recipe=legal model=smollm2_135m machine=cpu" in found.advice
    assert "recipe=legal model=qwen3_32b method=lora machine=a100x8" in found.advice
    text = found.render()
    assert "it does not fit" in text
    assert "type instead" in text


def test_advice_is_itself_a_plan_that_fits():
    found = planned("model=qwen3_32b")
    for word in found.advice:
        other = load(word.split())
        assert check(other, environment={}) == []
        assert plan(settle(other, LAPTOP)).fits, word


def test_a_gpu_too_small_for_the_merged_model_is_not_told_to_train_in_4_bit():
    """4 bit would train there, and after hours SCORE and PROOF would end: they load what is served, whole."""
    small = Here(gpus=(Gpu("NVIDIA RTX 6000 Ada", 48.0),) * 8, cores=64, memory_gib=512.0, disk_free_gib=5000.0)
    found = planned("model=qwen3_32b", "method=qlora", on=small)
    assert all(stage.bytes.peak < found.usable < found.children["proof"] for stage in found.stages)
    assert not found.fits
    assert "of Qwen/Qwen3-32B, which one process runs, needs" in found.problems[0].rule
    assert not any("qwen3_32b" in word and "machine=a100" not in word and "h100" not in word for word in found.advice)


def test_a_layout_that_does_not_fit_is_told_another_that_does():
    """Eight cards of 80 GB hold no replica with its activations, and share one."""
    words = ("model=qwen3_32b", "machine=a100x8", "machine.layout=ddp", "machine.deepspeed=null", "stages=[sft]")
    found = planned(*words, "sft.max_length=8192")
    assert not found.fits
    assert any("method=lora machine.layout=zero3" in word for word in found.advice)


def test_auto_takes_every_gpu_and_shares_the_weights_only_when_it_must():
    large = settle(_loaded(("model=qwen3_32b", "method=lora")), WORKSTATION).machine
    assert (large.device, large.processes) == ("cuda", 4)
    assert large.deepspeed is None or large.layout == "zero3"
    small = settle(_loaded(("model=smollm2_135m",)), WORKSTATION).machine
    assert (small.layout, small.deepspeed) == ("ddp", None)
    tight = Here(gpus=(Gpu("NVIDIA A100-SXM4-40GB", 40.0),) * 8, cores=64, memory_gib=512.0, disk_free_gib=5000.0)
    assert settle(_loaded(("model=qwen3_32b", "method=lora")), tight).machine.layout == "zero3"


def test_auto_follows_the_number_of_processes_that_were_launched():
    assert settle(_loaded(("model=smollm2_135m",)), WORKSTATION, launched=1).machine.processes == 1
    assert settle(_loaded(("model=smollm2_135m",)), WORKSTATION, launched=2).machine.processes == 2


def test_the_per_device_batch_divides_every_stage_and_is_the_largest_that_fits():
    settled = settle(_loaded(("model=qwen3_32b", "machine=a100x8")), LAPTOP)
    each = settled.machine.per_device_batch_size
    assert each is not None
    for name in settled.stages:
        assert getattr(settled, name).batch_size % (each * settled.machine.processes) == 0
    assert plan(settled).fits


def test_a_resolved_machine_leaves_nothing_open():
    machine = settle(_loaded(("model=smollm2_135m",)), LAPTOP).machine
    assert (machine.device, machine.processes, machine.threads, machine.gradient_checkpointing) == ("cpu", 1, 2, False)
    assert machine.host_memory_gib == 24.0
    assert machine.per_device_batch_size == 8


def test_activations_are_recomputed_only_where_the_same_batch_does_not_fit_without():
    """Recomputing costs about a third more compute; a smaller batch more forwards, each with its gathers."""
    words = ("model=smollm2_135m", "machine.processes=1", "machine.device=cuda", "stages=[sft]")
    for gib, on in ((4.0, True), (5.0, True), (6.0, False), (80.0, False)):  # 5: fits without, and leaves no tenth
        one = Here(gpus=(Gpu("a card", gib),), cores=8, memory_gib=64.0, disk_free_gib=500.0)
        found = planned(*words, on=one)
        asked = planned(*words, "machine.gradient_checkpointing=true", on=one)
        assert found.machine.gradient_checkpointing is on, found.checkpointing
        assert found.checkpointing.startswith("on: " if on else "off: ")
        assert found.checkpointing in found.render()
        assert found.fits
        assert found.per_device_batch_size == asked.per_device_batch_size
        assert found.kept_peak == asked.kept_peak > asked.peak
        assert (found.kept_peak <= 0.9 * found.usable) is not on
        assert ("as it was set" in asked.checkpointing) is not on
    assert planned("model=qwen3_32b", "machine=a100x8").machine.gradient_checkpointing is True


def test_a_cpu_recomputes_by_the_same_rule():
    small = Here(gpus=(), cores=2, memory_gib=4.0, disk_free_gib=500.0)
    words = ("model=smollm2_135m", "machine=cpu", "stages=[sft]")
    assert planned(*words, on=small).machine.gradient_checkpointing is True
    assert planned(*words).machine.gradient_checkpointing is False
    assert planned(*words, "machine.gradient_checkpointing=false", on=small).machine.gradient_checkpointing is False


def test_what_one_process_runs_counts_prompts_by_the_longest_row_and_must_fit() -> None:
    """SCORE's attention grows with the square of a prompt; MERGE holds blocks, however large the model is."""
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft,dpo]", "score.batch_tokens=4096")
    short, long = (planned(*words, counted={"sft": Counted(400, None, length)}) for length in (128, 2048))
    assert set(short.children) == {"score", "pairs", "merge", "proof"}, "no 4 bit, nothing exported"
    assert short.children["merge"] == long.children["merge"] < GIB
    assert P * 2 < short.children["proof"] <= short.generation == max(short.children.values())
    assert long.generation > short.generation + 10 * GIB
    assert short.fits
    assert "score of Qwen/Qwen3-32B, which one process runs, needs" in long.problems[0].rule
    assert "proof" in short.render()


def test_long_contexts_count_in_score() -> None:
    """Prompts of 16,384 tokens are read whole, however short the recipe's own rows are."""
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft]")
    rows = {"sft": Counted(400, None, 128)}
    without = planned(*words, counted=rows).children["score"]
    small = planned(*words, "score.context={lengths: [256, 512]}", counted=rows).children["score"]
    large = planned(*words, "score.context={lengths: [256, 16384]}", counted=rows).children["score"]
    assert without <= small < large - 10 * GIB


def test_4_bit_adds_bases_and_proof_still_holds_the_merged_model_whole():
    """BASES reads with the 4-bit model; what MERGE wrote is not in 4 bit, whatever was trained on."""
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft]", "method=qlora")
    found = planned(*words, "machine.layout=ddp", "machine.deepspeed=null", counted={"sft": Counted(400, None, 128)})
    assert list(found.children) == ["score", "bases", "merge", "proof"]
    weights = found.stages[0].bytes.weights
    # 24 prompts of 128 tokens and 64 of answer, float32, through a layer's gate, up, product and sum, or as 512 logits.
    read = 24 * 192 * 4 * (4 * 25_600 + 2 * 5_120)
    assert weights + read < found.children["bases"] < weights + read + GIB
    assert found.children["proof"] > P * 2


def test_export_holds_the_merged_model_on_the_device_and_while_rounding_on_the_host():
    words = ("model=qwen3_32b", "machine=a100x8", "stages=[sft]", "export=[w4a16]", "quantise.rows=10000")
    counted = {"sft": Counted(400, None, 128)}
    found, nearest = (planned(*words, f"quantise.rounding={how}", counted=counted) for how in ("gptq", "nearest"))
    assert list(found.children) == ["score", "merge", "proof", "export"]
    assert P * 2 < found.children["export"] < found.usable
    # Sums of products of the inputs of q, k, v, gate, up (5,120), o (8,192) and down (25,600), this one thrice.
    sums = 4 * (5 * 5120**2 + 8192**2 + 3 * 25_600**2)
    rows = 2 * 10_000 * 128 * 5120 * 2
    assert 0 < found.quantising - (P * 2 + sums + rows) < GIB
    assert 0 < nearest.quantising - (P * 2 + nearest.disk["quantised"]) < GIB, "what is unpacked beside what it is from"
    assert found.host >= found.quantising
    assert "quantising" in found.render()
    assert planned(*words[:3]).quantising == 0


def test_disk_holds_the_logits_that_models_are_compared_by_while_they_are_there():
    """Float32, 64 positions, the whole vocabulary: PROOF has two such files, EXPORT one beside its models."""
    words = ("model=qwen3_32b", "machine=a100x8", "score.parity_prompts=20")
    each = 20 * 64 * 151_936 * 4
    plain, both = planned(*words).disk, planned(*words, "export=[w4a16]").disk
    assert plain["logits"] == 2 * each
    assert both["logits"] == each, "what EXPORT writes is larger than PROOF's second file"
    few = planned(*words[:2], "score.parity_prompts=100000").disk["logits"]
    tested = sum(task.test_rows for task in _loaded(words[:2]).tasks.values())
    assert few == 2 * tested * 64 * 151_936 * 4, "no more prompts than there are test rows"


def test_this_machine_is_seen_without_torch():
    found = here()
    assert found.cores >= 1
    assert found.memory_gib > 0.5
    assert found.disk_free_gib >= 0


def test_json_holds_the_same_facts():
    found = planned("model=qwen3_32b", "machine=a100x8")
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["fits"] is True
    assert plain["parameters"] == P
    assert plain["stages"][0]["bytes"]["weights"] == P * 2 / 8
    assert plain["peak"] / GIB == pytest.approx(found.peak / GIB)


def test_every_key_of_the_json_is_documented_and_nothing_else_is():
    plain = planned("model=qwen3_32b", "machine=a100x8", "export=[w8a8]").to_json()
    text = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    table = text.partition("## The plan as JSON")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, flags=re.M)
    documented = {name for row in rows for name in re.findall(r"`(.*?)`", row)}
    keys = set(plain) | {f"stages[].{key}" for key in plain["stages"][0]}
    keys |= {f"stages[].bytes.{key}" for key in plain["stages"][0]["bytes"]}
    keys |= {f"options[].{key}" for key in plain["options"][0]} | {f"disk.{key}" for key in plain["disk"]}
    keys |= {f"children.{key}" for key in (*plain["children"], "pairs", "bases")}
    keys |= {f"progress[].{field.name}" for field in dataclasses.fields(StageState)}
    assert documented == keys

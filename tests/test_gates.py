"""Gates: a limit is held, broken or not measured, and the last is never taken for the first."""

import pytest

from finetune.config.evaluation import Gates
from finetune.gates import evaluate_gates, vetoes


def evaluate(settings: Gates | None = None, *, low=0.05, tuned=10.2, kl=2e-4) -> dict[str, str]:
    scores = {
        "tasks": [{"name": "other", "ci95": [-1, 1]}, {"name": "main", "ci95": [low, 0.2]}],
        "general": {"perplexity_base": {"a": 10.0, "b": 10.0}, "perplexity_tuned": {"a": 10.0, "b": tuned}},
    }
    gates = evaluate_gates(settings or Gates(), scores, {"kl_mean": kl}, main_task="main")
    return {gate["name"]: gate["status"] for gate in gates}


def test_all_gates_pass_when_every_limit_is_held():
    assert evaluate() == {
        "gain_above": "pass", "perplexity_rise_max": "pass", "parity_kl_mean_max": "pass"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "name"),
    [({"low": 0.0}, "gain_above"), ({"tuned": 10.6}, "perplexity_rise_max"), ({"kl": 0.01}, "parity_kl_mean_max")],
)
def test_a_broken_limit_fails_its_own_gate_only(numbers, name):
    assert [gate for gate, status in evaluate(**numbers).items() if status == "fail"] == [name]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_number_that_is_missing_or_not_finite_is_not_a_pass(bad):
    assert evaluate(low=bad)["gain_above"] == "not_measured"
    assert evaluate(kl=bad)["parity_kl_mean_max"] == "not_measured"


def test_a_gate_that_is_turned_off_is_not_listed():
    assert "gain_above" not in evaluate(Gates(gain_above=None))


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

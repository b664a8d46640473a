"""Prometheus alert rules for a served bundle, and promtool tests in which each of them fires and stays silent.

Metric names as vLLM 0.32.0 shows them under /metrics; where an older vLLM had another name, a rule reads both:
vllm:gpu_cache_usage_perc became vllm:kv_cache_usage_perc, vllm:time_per_output_token_seconds became
vllm:inter_token_latency_seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config.evaluation import Alerts

METRICS = (
    "vllm:time_to_first_token_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket", "vllm:num_requests_waiting", "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc", "vllm:request_success_total", "http_requests_total",
)  # fmt: skip
"""Names that the rules read and that a server of today shows; a test asks a real one."""
_WAIT = 5
"""Minutes for which a condition must hold, so that one slow scrape wakes nobody."""


@dataclass(frozen=True)
class _Case:
    """Series (name with labels -> values a minute) and whether the rule fires on them after 20 minutes."""

    series: Mapping[str, str]
    fires: bool


@dataclass(frozen=True)
class _Rule:
    name: str
    severity: str
    expression: str
    summary: str
    action: str
    cases: tuple[_Case, ...]
    wait: int = _WAIT


def rules(name: str, limits: Alerts) -> dict[str, Any]:
    """alerts.yml for a server whose --served-model-name is `name` (`name-base` where the adapter is served).

    What names no model is read of the scrape job `limits.job`, or `name`: a Prometheus is shared by many services.
    """
    return {
        "groups": [
            {
                "name": f"vllm-{name}",
                "rules": [
                    {
                        "alert": rule.name,
                        "expr": rule.expression,
                        "for": f"{rule.wait}m",
                        "labels": {"severity": rule.severity, "model": name},
                        "annotations": {"summary": rule.summary, "action": rule.action},
                    }
                    for rule in _rules(name, limits)
                ],
            }
        ]
    }


def tests(name: str, limits: Alerts) -> dict[str, Any]:
    """alerts_test.yml: `promtool test rules alerts_test.yml` beside alerts.yml."""
    return {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in case.series.items()],
                "alert_rule_test": [
                    # Before the condition has held for `for`, nobody is woken.
                    {"eval_time": f"{rule.wait - 1}m", "alertname": rule.name, "exp_alerts": []},
                    {"eval_time": "40m", "alertname": rule.name, "exp_alerts": _expected(name, rule, case)},
                ],
            }
            for rule in _rules(name, limits)
            for case in rule.cases
        ],
    }


def _expected(name: str, rule: _Rule, case: _Case) -> list[dict[str, Any]]:
    if not case.fires:
        return []
    labels = {"severity": rule.severity, "model": name}
    return [{"exp_labels": labels, "exp_annotations": {"summary": rule.summary, "action": rule.action}}]


def _rules(name: str, limits: Alerts) -> list[_Rule]:
    ours = f'model_name=~"{name}(-base)?"'
    labels = f'engine="0",model_name="{name}"'
    job = limits.job or name
    found = [
        _slow(
            "VllmFirstTokenSlow", ("vllm:time_to_first_token_seconds",), limits.first_token_p95_seconds, name,
            "first tokens", "Look at the queue: prompts wait or are long. More copies, or a smaller --max-model-len.",
        ),
        _slow(
            "VllmAnswerSlow", ("vllm:e2e_request_latency_seconds",), limits.answer_p95_seconds, name,
            "whole answers", "Look at first token and token times: which of them grew? Long answers: lower max_tokens.",
        ),
        _slow(
            "VllmTokensSlow", ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
            limits.token_p95_seconds, name,
            "gaps between tokens", "Too many requests run at once: lower --max-num-seqs, or add a copy.",
        ),
        _Rule(
            "VllmQueueLong", "warning", f"sum(vllm:num_requests_waiting{{{ours}}}) > {limits.waiting_max}",
            f"More than {limits.waiting_max} requests have been waiting for {_WAIT} minutes.",
            "Add a copy, or turn requests away at the gateway before they time out.",
            (
                _Case({f"vllm:num_requests_waiting{{{labels}}}": f"{limits.waiting_max + 1}x40"}, True),
                _Case({f"vllm:num_requests_waiting{{{labels}}}": f"{limits.waiting_max}x40"}, False),
            ),
        ),
        _cache(ours, labels, limits),
        _Rule(
            "VllmRequestsFail", "critical",
            f'sum(rate(vllm:request_success_total{{finished_reason=~"abort|error",{ours}}}[5m]))'
            f" / sum(rate(vllm:request_success_total{{{ours}}}[5m])) > {limits.failed_share_max}",
            f"More than {limits.failed_share_max:.1%} of the requests were aborted or ended in an error.",
            "abort: clients give up, look at the latency. error: read the server's log, then ROLLBACK.md.",
            tuple(
                _Case(
                    {
                        f'vllm:request_success_total{{{labels},finished_reason="stop"}}': "0+1000x40",
                        f'vllm:request_success_total{{{labels},finished_reason="{reason}"}}': f"0+{failed}x40",
                    },
                    fires,
                )
                for reason in ("abort", "error")
                for failed, fires in _around(1000, limits.failed_share_max)
            ),
        ),
        _Rule(
            "VllmServerErrors", "critical",
            f'sum(rate(http_requests_total{{job="{job}",handler=~"/v1/.*",status="5xx"}}[5m]))'
            f' / sum(rate(http_requests_total{{job="{job}",handler=~"/v1/.*"}}[5m])) > {limits.failed_share_max}',
            f"More than {limits.failed_share_max:.1%} of the HTTP requests to job {job} ended with 500 or above.",
            "Read the server's log; restart it, or go back as ROLLBACK.md says.",
            tuple(
                _Case({**_requests(job, 1000, failed), **_requests(f"{job}-of-another-team", *others)}, fires)
                for failed, fires in _around(1000, limits.failed_share_max)
                # A neighbour without errors hides none of ours, and a broken one is not ours to mend.
                for others in ((9_000_000, 0), (0, 9_000_000))
            ),
        ),
        _Rule(
            "VllmGone", "critical", f'absent(sum(vllm:num_requests_running{{job="{job}",{ours}}}))',
            f"No server of job {job} shows metrics for this model: it is down, Prometheus does not reach it, or"
            " calls the job otherwise.",
            "Ask /health; start serve/gpus-N.sh again. Another job_name: handoff.alerts.job in the recipe names it.",
            (
                _Case({f'vllm:num_requests_running{{job="{job}",engine="0",model_name="another"}}': "0x40"}, True),
                _Case({f'vllm:num_requests_running{{job="{job}-renamed",{labels}}}': "0x40"}, True),
                _Case({f'vllm:num_requests_running{{job="{job}",{labels}}}': "0x40"}, False),
                _Case({f'vllm:num_requests_running{{job="{job}",engine="0",model_name="{name}-base"}}': "0x40"}, False),
            ),
        ),
    ]  # fmt: skip
    return [*found, _silent(ours, labels, limits.silent_minutes)] if limits.silent_minutes else found


def _requests(job: str, good: int, failed: int) -> dict[str, str]:
    at = f'job="{job}",handler="/v1/chat/completions",method="POST"'
    return {
        f'http_requests_total{{{at},status="2xx"}}': f"0+{good}x40",
        f'http_requests_total{{{at},status="5xx"}}': f"0+{failed}x40",
    }


def _cache(ours: str, labels: str, limits: Alerts) -> _Rule:
    names = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    share = limits.kv_cache_share_max
    return _Rule(
        "VllmKvCacheFull", "warning",
        f"max({' or '.join(f'{metric}{{{ours}}}' for metric in names)}) > {share}",
        f"The cache of keys and values has been more than {share:.0%} full for {_WAIT} minutes.",
        "Requests will be pre-empted and computed again: lower --max-num-seqs or --max-model-len, or add GPUs.",
        tuple(
            _Case({f"{metric}{{{labels}}}": f"{value:g}x40"}, fires)
            for metric in names for value, fires in (((1 + share) / 2, True), (share, False))
        ),
    )  # fmt: skip


def _silent(ours: str, labels: str, minutes: int) -> _Rule:
    done = f'vllm:request_success_total{{{labels},finished_reason="stop"}}'
    return _Rule(
        "VllmNoTraffic", "warning", f"sum(increase(vllm:request_success_total{{{ours}}}[{minutes}m])) == 0",
        f"No request was finished in {minutes} minutes although the server is up.",
        "Ask the gateway; where silence is normal, set handoff.alerts.silent_minutes to null in the recipe.",
        (
            _Case({done: f"7x{40 + minutes}"}, True),
            _Case({done: f"0+1x{40 + minutes}"}, False),
        ),
    )  # fmt: skip


def _slow(
    alert: str, metrics: tuple[str, ...], seconds: float, name: str, what: str, action: str
) -> _Rule:
    """p95 over five minutes. The cases lie 1 % on either side of the percentile: a mean would not tell them apart."""
    ours = f'model_name=~"{name}(-base)?"'
    rates = " or ".join(f"rate({metric}_bucket{{{ours}}}[5m])" for metric in metrics)

    def series(metric: str, under: int) -> dict[str, str]:
        at = f'engine="0",model_name="{name}"'
        return {
            f'{metric}_bucket{{{at},le="{seconds:g}"}}': f"0+{under}x40",
            f'{metric}_bucket{{{at},le="{4 * seconds:g}"}}': "0+100x40",
            f'{metric}_bucket{{{at},le="+Inf"}}': "0+100x40",
        }

    return _Rule(
        alert, "warning", f"histogram_quantile(0.95, sum by (le) ({rates})) > {seconds:g}",
        f"The slowest 5 % of {what} took longer than {seconds:g} s for {_WAIT} minutes.", action,
        tuple(_Case(series(metric, under), fires) for metric in metrics for under, fires in ((94, True), (96, False))),
    )  # fmt: skip


def _around(others: int, share: float) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """Failures beside `others` successes: just more than `share` of all, and just fewer."""
    limit = others * share / (1 - share)
    return (int(limit) + 1, True), (max(0, -int(-limit // 1) - 1), False)

"""Sections `score`, `gates`, `privacy`, `handoff` and `tracking`: what decides, what is shown, what is handed over."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section

Positive = Annotated[int, Field(ge=1)]


class Score(Section):
    shots: Annotated[int, Field(ge=0, le=16)] = 4
    """Worked examples in the few-shot base prompt, drawn from the training rows."""
    batch_tokens: Positive = 4096
    """Prompt tokens in one generation batch."""
    general_tokens: Positive = 8_000
    """Tokens of each kind of general text on which perplexity is measured."""
    parity_prompts: Positive = 200
    """Prompts on which the merged model is held against the adapter; below 200 the report says that they are few."""


class Gates(Section):
    """Limits that HANDOFF enforces; null: the gate is not asked for."""

    gain_above: float | None = 0.0
    """The lower end of the main task's 95 % interval (tuned - best of base and majority) must exceed this."""
    perplexity_rise_max: Annotated[float, Field(ge=0)] | None = 0.05
    """Largest rise of general perplexity, as a fraction, on every kind of general text."""
    parity_kl_mean_max: Annotated[float, Field(ge=0)] | None = 1e-3
    """Largest mean KL(adapter || merged) in nats a position."""
    export_loss_max: Annotated[float, Field(ge=0)] = 0.02
    """Largest loss of any task's score (SCORE's tuned - the quantised model's). A quantised model above it is left out
    of the bundle; so is one above the next limit."""
    export_kl_mean_max: Annotated[float, Field(ge=0)] | None = None
    """Largest mean KL(merged || quantised) in nats a position; null: not asked for."""


class Privacy(Section):
    samples: Literal["none", "redacted", "full"] = "redacted"
    """What text of the evaluation rows may enter report, tracker and bundle."""


class Alerts(Section):
    """Thresholds of the Prometheus rules in the bundle's serve/alerts.yml, each held for five minutes."""

    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]+$")] | None = None
    """`job_name` under which the serving team's Prometheus scrapes this model; null: the recipe's `name`."""
    first_token_p95_seconds: Annotated[float, Field(gt=0, le=640)] = 2.5
    """95 % of the requests see their first token sooner (best one of vLLM's bucket bounds: 1, 2.5, 5, 7.5, 10, 20)."""
    answer_p95_seconds: Annotated[float, Field(gt=0, le=1920)] = 60.0
    """95 % of the requests are answered in full sooner (bucket bounds: 1, 2, 5, 10, 20, 30, 60, 120, 240)."""
    token_p95_seconds: Annotated[float, Field(gt=0, le=20)] = 0.1
    """95 % of the gaps between two tokens are shorter (bucket bounds: 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1)."""
    waiting_max: Annotated[int, Field(ge=0)] = 16
    """Requests in the queue."""
    kv_cache_share_max: Annotated[float, Field(gt=0, lt=1)] = 0.95
    failed_share_max: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Aborted or failed requests among all; the same limit for HTTP statuses from 500 on."""
    silent_minutes: Annotated[int, Field(ge=5, le=60)] | None = 15
    """Minutes without a finished request; null: silence is normal here."""


class Handoff(Section):
    accepted_by: str | None = None
    """Who accepts a bundle whose gates failed; needs `reason`, and both are shown in red."""
    reason: str | None = None
    alerts: Alerts = Alerts()
    """What the serving team is woken for."""
    licence_files: dict[str, str] = {}
    """Source -> its licence text, below data_root: copied into the bundle."""
    signer: str | None = None
    """Who signs, as the card says it; receivers trust the public key that they got from there, not this line."""
    signing_key: str | None = None
    """Private key (`finetune keygen`) that finished bundles are signed with. Never copied, logged or written down."""


class Tracking(Section):
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """The environment variable WANDB_MODE wins."""
    project: str = "finetune"
    entity: str | None = None

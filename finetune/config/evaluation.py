"""Sections `score`, `gates`, `privacy`, `handoff` and `tracking`: what decides, what is shown, what is handed over."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.config.section import Section

Positive = Annotated[int, Field(ge=1)]
CONTEXT_ANSWER = 32
"""Tokens for the answer to a question about a long context."""


class Consistency(Section):
    prompts: Annotated[int, Field(ge=0)] = 0
    """Test prompts asked again, in batches of another composition and in other words that ask for the same; 0: none.
    Each is asked six times more."""


class Context(Section):
    """Facts planted into long texts of the recipe's own documents, at chosen places, and asked for."""

    lengths: Annotated[tuple[Annotated[int, Field(ge=256)], ...], Field(min_length=1)]
    """Lengths of the whole prompt in tokens, at most the model's positions less CONTEXT_ANSWER; a loss needs two."""
    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.1, 0.5, 0.9)
    """Where the fact stands: 0 is the beginning of the text, 1 its end."""
    each: Positive = 4
    """Questions for each length, depth and kind (needle, cross-reference)."""


class Harness(Section):
    """Tasks of lm-evaluation-harness, asked of base and tuned model (the extra `harness`)."""

    tasks: tuple[str, ...] = ()
    """Names of its tasks, groups or tags; their data must be in Hugging Face's cache or within reach."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples in each prompt; null: what the task's own file says."""
    limit: Positive | None = None
    """At most so many rows of each task, the first ones; null: all."""
    chat_template: bool = True
    """Whether prompts go through the model's template (never in thinking mode), as a served model is asked."""


class Score(Section):
    shots: Annotated[int, Field(ge=0, le=16)] = 4
    """Worked examples in the few-shot base prompt, drawn from the training rows."""
    batch_tokens: Positive = 4096
    """Prompt tokens in one generation batch."""
    general_tokens: Positive = 8_000
    """Tokens of each kind of general text on which perplexity is measured."""
    parity_prompts: Positive = 200
    """Prompts on which the merged model is held against the adapter; below 200 the report says that they are few."""
    modes: tuple[Literal["plain", "think"], ...] = ()
    """Modes in which the tuned model is asked everything, to say which one suits each task; (): the mode trained."""
    think_tokens: Positive = 1024
    """Room for thoughts, beside the task's max_new_tokens, where a row of plain mode is asked to think."""
    consistency: Consistency = Consistency()
    """Whether the tuned model says the same when it is asked again."""
    context: Context | None = None
    """What the tuned model loses over long contexts; null: not measured."""
    harness: Harness = Harness()
    """Public tasks beside the recipe's own."""
    latency_file: str | None = None
    """latency.json of `finetune score --latency`, for the report and, where it is of these weights,
    gates.latency_p95_max."""


class Gates(Section):
    """Limits that HANDOFF enforces; null: the gate is not asked for. What was not measured is said and refuses nothing.
    """

    gain_above: float | None = 0.0
    """The lower end of the main task's 95 % interval (tuned - best of base and majority) must exceed this."""
    perplexity_rise_max: Annotated[float, Field(ge=0)] | None = 0.05
    """Largest rise of general perplexity, as a fraction, on every kind of general text."""
    parity_kl_mean_max: Annotated[float, Field(ge=0)] | None = 1e-3
    """Largest mean KL(adapter || merged) in nats a position."""
    consistency_min: Annotated[float, Field(ge=0, le=1)] | None = 0.9
    """Least share of same answers to a prompt that is asked again (score.consistency)."""
    context_loss_max: Annotated[float, Field(ge=0)] | None = 0.05
    """Largest part of the right answers at the shortest context that is lost at the longest (score.context)."""
    latency_p95_max: Annotated[float, Field(gt=0)] | None = 1.2
    """Seconds within which the server answers 95 % of the requests in full (score.latency_file)."""
    leaks_max: Annotated[int, Field(ge=0)] | None = 0
    """Most personal data in the tuned model's answers that stood neither in prompt nor gold answer."""
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

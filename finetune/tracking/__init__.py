"""Weights & Biases, offline unless asked otherwise. What it cannot do never stops a run, and is said once.

The run's id lies in the work folder, so that a run that was stopped and started again goes on in the same place: its
steps are numbered through all stages, and a step that W&B has is not logged again. W&B loses what it had not written
when a process is killed; training tells it those steps again from the checkpoint.
wandb is imported and started in a thread of its own when there is the first step to log: starting it costs CPU seconds
that the first steps of a training would wait for. Online, a W&B that does not answer makes the run an offline one.
"""

import hashlib
import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from finetune import artifacts, ranks
from finetune.artifacts import Artifact
from finetune.config.recipe import Recipe, TrainingStage
from finetune.gates import evaluate_gates
from finetune.tracking import told
from finetune.tracking.records import Decoded, decode, files_of

RUN_FILE = "wandb_run.json"
_NOT_TRAINING = ("name", "title", "description", "licence", "limits", "machine", "score", "gates", "privacy", "handoff",
                 "tracking")  # fmt: skip
"""Sections that training does not depend on: a change there goes on in the same W&B run."""
_START_SECONDS, _FINISH_SECONDS, _CLOSE_SECONDS = 20.0, 20.0, 60.0
"""Waits for a W&B online: its first answer, the rest of the upload, and both with what was still to be told."""
SAMPLES, SAMPLES_OF = "score/samples", "score/samples_of"
"""The table, and what it was made of: an evaluation by other settings, or other privacy, is another table."""


class Tracker:
    """Sends metrics to W&B from the first rank; a no-op on every other rank and where tracking is disabled."""

    def __init__(
        self, start: Callable[[str], Any] | None, mode: str = "offline", say: Callable[[str], None] = print
    ) -> None:
        self._say = say
        self._mode = mode
        self._orders: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        """Set when there is a step to log, or the run ends."""
        self._before = 0
        """Steps of the training stages that are done."""
        self._last = 0
        """The last step that was logged."""
        self._had = Decoded()
        """What W&B's files had of this run when it was started."""
        self._known = 0
        """The last step that W&B had then."""
        if start is not None:
            self._thread = threading.Thread(target=self._work, args=(start,), name="tracking", daemon=True)
            self._thread.start()

    @classmethod
    def open(cls, recipe: Recipe, work: Path, data: str, say: Callable[[str], None] = print) -> "Tracker":
        """Start tracking. WANDB_MODE wins over `tracking.wandb`. `data`: the digest of what is trained on."""
        mode = os.environ.get("WANDB_MODE") or recipe.tracking.wandb
        if mode == "disabled" or not ranks.is_first():
            return cls(None, say=say)
        config = told.config_of(recipe)
        trained = {name: value for name, value in config.items() if name not in _NOT_TRAINING}
        run_id = _run_id(work, {"data": data, **trained})

        def start(how: Any) -> Any:
            import wandb

            # The table's copies would otherwise lie in the user's home.
            os.environ.setdefault("WANDB_DATA_DIR", str(work / "wandb"))
            wandb.setup(settings=wandb.Settings(silent=True))
            run = wandb.init(
                project=recipe.tracking.project, entity=recipe.tracking.entity, name=f"{recipe.name}-{run_id}",
                group=recipe.name, job_type="train", id=run_id, resume="allow" if how == "online" else None, mode=how,
                dir=str(work), config=config,
                settings=wandb.Settings(
                    console="off", silent=True, save_code=False, disable_git=True, disable_code=True,
                    x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, host="-",
                    init_timeout=_START_SECONDS, finish_timeout=_FINISH_SECONDS,
                ),
            )
            for stage in recipe.stages:
                run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            return run

        return cls(start, mode, say)

    def log(self, prefix: str, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step of the running stage; they appear as `prefix/name` over `prefix/step`.

        W&B's own step counts through all stages. What it has from before a kill or a stop is not logged again.
        """
        numbers = {f"{prefix}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        through = self._last = self._before + step

        def order(run: Any) -> None:
            if through > self._known:
                run.log({**numbers, f"{prefix}/step": step}, step=through)

        self._order(order)
        self._wanted.set()

    def summary(self, facts: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        plain = {name: value for name, value in facts.items() if isinstance(value, int | float | str | bool)}
        self._order(lambda run: run.summary.update(plain))

    def follow(self, *made: Artifact) -> None:
        """Note finished artifacts: plain facts as summary, and names, digests and inputs as W&B artifacts.

        Files are named by their hash; nothing of them is read or sent.
        """
        for artifact in made:
            facts = told.numbers(artifact.facts, artifact.stage)
            if artifact.stage == "prepare":
                facts |= told.dropped(json.loads(artifact.file("ledger.json").read_text(encoding="utf-8")))
            if artifact.stage == "handoff":
                facts |= told.gates(artifact.facts["gates"])
            self.summary({
                **facts, f"{artifact.stage}/seconds": artifact.manifest["seconds"],
                f"{artifact.stage}/artifact": artifact.path.name,
            })  # fmt: skip
            self._order(partial(self._note, artifact))
            if artifact.stage in get_args(TrainingStage):
                self._tell_again(artifact)
                self._before += int(artifact.facts["steps"])

    def conclude(
        self, recipe: Recipe, *, base: Artifact, prepared: Artifact, scores: Artifact, proof: Artifact
    ) -> None:
        """Headline metrics and gates as summary, the answers as a table: what `privacy.samples` lets out of them."""
        last = max(self._before, self._last)

        def order(run: Any) -> None:
            scored = json.loads(scores.file("scores.json").read_text(encoding="utf-8"))
            parity = json.loads(proof.file("parity.json").read_text(encoding="utf-8"))
            # HANDOFF judges again and may refuse: until then this is what is known.
            gates = evaluate_gates(recipe.gates, scored, parity, main_task=recipe.main_task)
            run.summary.update(told.headline(scored) | told.gates(gates))
            made_of = f"{recipe.privacy.samples}:{scores.digest}"
            if self._had.summary.get(SAMPLES_OF) == made_of:
                return
            rows = told.samples(recipe, base, prepared, scores)
            if rows:
                import wandb

                table = wandb.Table(columns=list(told.COLUMNS), data=rows)
                run.log({SAMPLES: table}, step=max(self._known, last) + 1)
                run.summary[SAMPLES_OF] = made_of

        self._order(order)

    def _tell_again(self, trained: Artifact) -> None:
        """Steps that a launch before this one logged: W&B may have lost them when it was killed after the training."""
        for line in map(json.loads, trained.file("log.jsonl").read_text(encoding="utf-8").splitlines()):
            step = line.pop("step")
            if self._before + step > self._last:
                self.log(trained.stage, line, step)

    def close(self) -> None:
        """Send what is left; waits a minute at most."""
        if self._thread is not None:
            self._orders.put(None)
            self._wanted.set()
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _order(self, order: Callable[[Any], None]) -> None:
        if self._thread is not None:
            self._orders.put(order)

    def _note(self, artifact: Artifact, run: Any) -> None:
        import wandb

        name, about = f"{run.group}-{artifact.stage}", told.metadata(artifact)
        if self._had.artifacts.get(name, {}).get("metadata") == about:
            return
        noted = wandb.Artifact(name, type=artifact.stage, metadata=about)
        for file, digest in artifact.manifest["files"].items():
            noted.add_reference(f"sha256:{digest}", name=file)
        run.log_artifact(noted)

    def _work(self, start: Callable[[str], Any]) -> None:
        self._wanted.wait()
        try:
            import wandb
            from wandb.errors import Error
            from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
            from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
            from wandb.sdk.mailbox.mailbox_handle import ServerResponseError
        except ImportError as error:
            self._give_up(error)
            return
        theirs = (Error, ServerResponseError, HandleAbandonedError, MailboxClosedError, WandbServiceConnectionError)
        try:
            try:
                run = start(self._mode)
            except (Error, TimeoutError) as error:
                if self._mode != "online":
                    raise
                self._say(f"tracking: W&B does not answer ({type(error).__name__}: {error}); the run goes on offline, "
                          "`wandb sync` of its folder sends it later")  # fmt: skip
                wandb.teardown()  # or the id would still be in use
                run = start("offline")
            self._had = decode(files_of(Path(run.settings.wandb_dir), run.id))
            self._known = max(run.starting_step - 1, self._had.last_step)
            while (order := self._orders.get()) is not None:
                order(run)
            run.finish()
            wandb.teardown()  # its service writes the end of the file after finish() has returned
        except (*theirs, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """A tracker must not end a training run of hours, whatever a network, a disk or a service does to it."""
        self._say(f"tracking: W&B stopped working ({type(error).__name__}: {error}); the run goes on without it")


def _run_id(work: Path, trained: Mapping[str, Any]) -> str:
    """One id for each thing that is trained in this folder: other numbers must not come into the same curves."""
    file = work / RUN_FILE
    what = hashlib.sha256(artifacts.canonical_json(trained).encode()).hexdigest()[:16]
    try:
        known: dict[str, str] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    if what not in known:
        known[what] = secrets.token_hex(4)
        artifacts.write_whole(file, json.dumps(known, indent=1))
    return known[what]

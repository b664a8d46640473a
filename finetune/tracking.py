"""Weights & Biases, offline unless asked otherwise. What it cannot do never stops a run, and is said once.

The run's id lies in the work folder, so that a run that was stopped and started again goes on in the same place.
wandb is imported and started in a thread of its own: training does not wait for it.
"""

import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune import artifacts, ranks
from finetune.artifacts import Artifact
from finetune.config.recipe import Recipe, without_places

RUN_FILE = "wandb_run.json"
_CLOSE_SECONDS = 60.0


class Tracker:
    """Sends metrics to W&B from the first rank; a no-op on every other rank and where tracking is disabled."""

    def __init__(self, start: Callable[[], Any] | None, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._orders: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if start is not None:
            self._thread = threading.Thread(target=self._work, args=(start,), name="tracking", daemon=True)
            self._thread.start()

    @classmethod
    def open(cls, recipe: Recipe, work: Path, say: Callable[[str], None] = print) -> "Tracker":
        """Start tracking. WANDB_MODE wins over `tracking.wandb`."""
        mode: Any = os.environ.get("WANDB_MODE") or recipe.tracking.wandb
        if mode == "disabled" or not ranks.is_first():
            return cls(None, say)
        run_id = _run_id(work)
        config = without_places(recipe.model_dump(mode="json"))

        def start() -> Any:
            import wandb

            return wandb.init(
                project=recipe.tracking.project, entity=recipe.tracking.entity, name=recipe.name, id=run_id,
                resume="allow" if mode == "online" else None, mode=mode, dir=str(work), config=config,
                settings=wandb.Settings(
                    console="off", silent=True, save_code=False, disable_git=True, disable_code=True,
                    x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                ),
            )

        return cls(start, say)

    def log(self, prefix: str, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step; they appear as `prefix/name` over `prefix/step`."""
        numbers = {f"{prefix}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        self._order(lambda run: run.log({**numbers, f"{prefix}/step": step}))

    def summary(self, facts: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        plain = {name: value for name, value in facts.items() if isinstance(value, int | float | str | bool)}
        self._order(lambda run: run.summary.update(plain))

    def follow(self, *made: Artifact) -> None:
        """Note finished artifacts in the summary: their keys (names of folders) and their plain facts."""
        for artifact in made:
            facts = {f"{artifact.stage}/{name}": value for name, value in artifact.facts.items()}
            self.summary({**facts, f"{artifact.stage}/artifact": artifact.path.name})

    def close(self) -> None:
        """Send what is left; waits a minute at most."""
        if self._thread is not None:
            self._orders.put(None)
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

    def _work(self, start: Callable[[], Any]) -> None:
        try:
            from wandb.errors import Error
        except ImportError as error:
            self._give_up(error)
            return
        try:
            run = start()
            while (order := self._orders.get()) is not None:
                order(run)
            run.finish()
        except (Error, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """A tracker must not end a training run of hours, whatever a network, a disk or a service does to it."""
        self._say(f"tracking: W&B stopped working ({type(error).__name__}: {error}); the run goes on without it")


def _run_id(work: Path) -> str:
    file = work / RUN_FILE
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    except (OSError, json.JSONDecodeError, KeyError):
        made = secrets.token_hex(4)
        artifacts.write_whole(file, json.dumps({"id": made}))
        return made

"""Weights & Biases, offline unless asked otherwise. What it cannot do never stops a run, and is said once.

The run's id lies in the work folder, so that a run that was stopped and started again goes on in the same place: its
steps are numbered through all stages, and a step that W&B has is not logged again. W&B loses what it had not written
when a process is killed; training tells it those steps again from the checkpoint.
wandb is imported and started in a thread of its own when there is the first step to log: starting it costs CPU seconds
that the first steps of a training would wait for.
"""

import hashlib
import json
import os
import queue
import secrets
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from finetune import artifacts, ranks
from finetune.artifacts import Artifact
from finetune.config.recipe import Recipe, TrainingStage, without_places

RUN_FILE = "wandb_run.json"
_NOT_TRAINING = ("name", "title", "description", "licence", "limits", "machine", "score", "gates", "privacy", "handoff",
                 "tracking")  # fmt: skip
"""Sections that training does not depend on: a change there goes on in the same W&B run."""
_CLOSE_SECONDS = 60.0
_HEADER, _BLOCK, _PIECE = 7, 32768, struct.Struct("<IHB")


class Tracker:
    """Sends metrics to W&B from the first rank; a no-op on every other rank and where tracking is disabled."""

    def __init__(self, start: Callable[[], Any] | None, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._orders: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        """Set when there is a step to log, or the run ends."""
        self._before = 0
        """Steps of the training stages that are done."""
        self._known = 0
        """The last step that W&B had when it was started."""
        if start is not None:
            self._thread = threading.Thread(target=self._work, args=(start,), name="tracking", daemon=True)
            self._thread.start()

    @classmethod
    def open(cls, recipe: Recipe, work: Path, data: str, say: Callable[[str], None] = print) -> "Tracker":
        """Start tracking. WANDB_MODE wins over `tracking.wandb`. `data`: the digest of what is trained on."""
        mode: Any = os.environ.get("WANDB_MODE") or recipe.tracking.wandb
        if mode == "disabled" or not ranks.is_first():
            return cls(None, say)
        config = without_places(recipe.model_dump(mode="json"))
        trained = {name: value for name, value in config.items() if name not in _NOT_TRAINING}
        run_id = _run_id(work, {"data": data, **trained})

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
        """Numbers of one step of the running stage; they appear as `prefix/name` over `prefix/step`.

        W&B's own step counts through all stages. What it has from before a kill or a stop is not logged again.
        """
        numbers = {f"{prefix}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        through = self._before + step

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
        """Note finished artifacts in the summary: their keys (names of folders) and their plain facts."""
        for artifact in made:
            facts = {f"{artifact.stage}/{name}": value for name, value in artifact.facts.items()}
            self.summary({**facts, f"{artifact.stage}/artifact": artifact.path.name})
            if artifact.stage in get_args(TrainingStage):
                self._before += int(artifact.facts["steps"])

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

    def _work(self, start: Callable[[], Any]) -> None:
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
            run = start()
            self._known = max(run.starting_step - 1, last_step(Path(run.settings.wandb_dir), run.id))
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


def last_step(folder: Path, run_id: str) -> int:
    """The last step in the run's files in W&B's `folder`, 0 where there is none."""
    from wandb.proto.wandb_internal_pb2 import Record

    last = 0
    for file in folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"):
        for raw in read_records(file):
            record = Record.FromString(raw)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def read_records(file: Path) -> Iterator[bytes]:
    """The whole records of a .wandb file: LevelDB's log format behind 7 bytes; a torn tail ends it.

    Blocks of 32 KiB hold pieces of (checksum, length, kind): kind 1 is a whole record, 2 its first, 3 a middle and 4
    its last piece. https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    raw, at, record = file.read_bytes(), _HEADER, b""
    while at + _PIECE.size <= len(raw):
        if (left := _BLOCK - at % _BLOCK) < _PIECE.size:
            at += left
            continue
        _, length, kind = _PIECE.unpack_from(raw, at)
        at += _PIECE.size
        if not 1 <= kind <= 4 or at + length > len(raw):
            return
        record = raw[at : at + length] if kind <= 2 else record + raw[at : at + length]
        at += length
        if kind in (1, 4):
            yield record

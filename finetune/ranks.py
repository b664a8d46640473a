"""Which process does what. The only file that reads RANK."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, build, explained, find, read, stage_key
from finetune.errors import Preempted, RecipeError
from finetune.pulse import Listener, Pulse

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_")
_POLL_SECONDS = 0.5
_LOCK = ".lock"
_LOCK_TRIES = 10
"""A process that was killed a moment ago takes seconds to give back the memory and files of a large model."""
_held: list[int] = []
"""Descriptor of the lock that this process holds: children get it too."""
_listeners: dict[Path, Listener] = {}
"""What this process, not being the first rank, has heard from it, for each work folder."""


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that must not believe it is one of several ranks (with these names it hangs)."""
    return {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER)}


@contextmanager
def hold(work: Path) -> Iterator[None]:
    """The first rank locks `work`, so that two runs never write into one `.partial`; a second one is a RecipeError.

    Children share the lock: when only the parent is killed, its child still works there. SIGTERM ends the process with
    code 75 and its child with it (training itself takes it over and saves first). Other ranks that wait are told when
    the first one fails.
    """
    with _leaving_on_sigterm():
        if not is_first():
            yield
            return
        with _locked(work), Pulse(work) if world() > 1 else nullcontext():
            yield


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(*_: object) -> None:
    if is_first():  # not print: the signal may have come in the middle of one
        os.write(2, b"stopped by SIGTERM; the same command goes on from here\n")
    raise SystemExit(Preempted.EXIT_CODE)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with explained(work):
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, work)
        _held.append(lock)
        _sign(os.getpid())
        yield
    finally:
        _held.clear()
        os.close(lock)


def _take(lock: int, work: Path) -> None:
    for _ in range(_LOCK_TRIES):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"{work}: no locks on this file system; see to it that no second run works there", file=sys.stderr)
            return None
    holders = os.pread(lock, 100, 0).decode()
    raise RecipeError.one(
        "work", str(work), f"another run (process {holders.replace(' ', ' or ')}) is working there",
        f"wait for its end, or end it (kill {holders}) and go on with the same command, or set another work=",
    )


def _sign(*processes: int) -> None:
    """Leave the process ids for the message of a second run."""
    for lock in _held:
        os.ftruncate(lock, 0)
        os.pwrite(lock, " ".join(str(process) for process in processes).encode(), 0)


def _let_go() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


# Forked workers may outlive a killed run for ever, and they write nothing: they must not keep its lock.
os.register_at_fork(after_in_child=_let_go)


def build_first(
    stage: Stage, config: Mapping[str, Any], *, root: Path, inputs: Mapping[str, Artifact], **live: Any
) -> Artifact:
    """The first rank works, the others look for the published result: no collective, so no timeout however long."""
    if is_first():
        return build(stage, config, root=root, inputs=inputs, **live)
    return _wait_for(root / f"{stage.name}-{stage_key(stage, config, inputs)}")


def build_together(
    stage: Stage,
    config: Mapping[str, Any],
    *,
    root: Path,
    inputs: Mapping[str, Artifact],
    say: Callable[[str], None],
    **live: Any,
) -> Artifact:
    """Every rank runs the stage function; the first publishes what came of it."""
    if is_first():
        return build(stage, config, root=root, inputs=inputs, say=say, **live)
    found = find(stage, config, root=root, inputs=inputs)
    if found is not None:
        return found
    final = root / f"{stage.name}-{stage_key(stage, config, inputs)}"
    stage.run(config, out=final.with_name(final.name + ".partial"), **inputs, say=say, **live)
    return _wait_for(final)


def build_in_child(
    stage: Stage,
    module: str,
    config: Mapping[str, Any],
    *,
    root: Path,
    inputs: Mapping[str, Artifact],
    say: Callable[[str], None],
    live: Mapping[str, Any],
) -> Artifact:
    """The first rank runs the stage in a fresh process that has the whole device; the others wait for the result.

    `module` is the dotted name that holds STAGE; `live` must be JSON. Exits with the child's code when it fails.
    """
    from finetune.child import Order

    if not is_first():
        return _wait_for(root / f"{stage.name}-{stage_key(stage, config, inputs)}")
    found = find(stage, config, root=root, inputs=inputs)
    if found is not None:
        say(f"{stage.name}: already done ({found.path.name})")
        return found
    order = Order(module, dict(config), str(root), {name: str(a.path) for name, a in inputs.items()}, dict(live))
    order.bases = {name: dict(a.manifest) for name, a in inputs.items() if a.stage == "base"}
    file = root / f".{stage.name}.order.json"
    order.write(file)
    command = [sys.executable, "-m", "finetune.child", str(file)]
    with subprocess.Popen(command, env=without_launcher(os.environ), pass_fds=_held) as child:
        _sign(os.getpid(), child.pid)
        try:
            code = child.wait()
        finally:
            child.kill()
    _sign(os.getpid())
    if code != 0:
        raise SystemExit(_exit_code(stage.name, code))
    file.unlink()
    result = find(stage, config, root=root, inputs=inputs)
    assert result is not None, f"{stage.name} ended without an error and without a result"
    return result


def _exit_code(name: str, code: int) -> int:
    """The child's code; when a signal ended it, say what to do, and give the code a shell would give (128 + n)."""
    if code > 0:
        return code
    memory = "; most likely memory ran out (score and proof take less with a lower score.batch_tokens)"
    cause = memory if -code == signal.SIGKILL else ""
    print(f"{name}: ended by signal {-code} ({signal.strsignal(-code)}){cause}; the same command goes on from here",
          file=sys.stderr)  # fmt: skip
    return 128 - code


def _wait_for(path: Path) -> Artifact:
    """Poll for a published artifact; ends this process with the first rank's code when that one fails."""
    listener = _listeners.setdefault(path.parent, Listener(path.parent))
    listener.begin()
    while not path.is_dir():
        if (failure := listener.failure()) is not None:
            code, message = failure
            print(f"rank {rank()}: {message}", file=sys.stderr)
            raise SystemExit(code)
        time.sleep(_POLL_SECONDS)
    return read(path)

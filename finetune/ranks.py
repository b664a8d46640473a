"""Which process does what. The only file that reads RANK."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage, build, find, read, stage_key

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_")
_POLL_SECONDS = 0.5


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that must not believe it is one of several ranks (with these names it hangs)."""
    return {name: value for name, value in environment.items() if not name.startswith(_LAUNCHER)}


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
    code = subprocess.run(
        [sys.executable, "-m", "finetune.child", str(file)], env=without_launcher(os.environ), check=False
    ).returncode
    if code != 0:
        raise SystemExit(code)
    file.unlink()
    result = find(stage, config, root=root, inputs=inputs)
    assert result is not None, f"{stage.name} ended without an error and without a result"
    return result


def _wait_for(path: Path) -> Artifact:
    """Poll for a published artifact; the launcher ends this process if the first rank fails."""
    while not path.is_dir():
        time.sleep(_POLL_SECONDS)
    return read(path)

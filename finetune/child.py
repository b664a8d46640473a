"""One stage in a fresh process: `python -m finetune.child ORDER.json`."""

import importlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, build, read, write_whole
from finetune.config.machine import Machine
from finetune.errors import RecipeError
from finetune.libraries import leave_out, unused


@dataclass
class Order:
    """What a child needs to know; plain JSON on disk, so that it can be read and run again by hand."""

    module: str
    config: dict[str, Any]
    root: str
    inputs: dict[str, str]
    live: dict[str, Any]
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Manifests of inputs that are no stage output: the base model has no manifest file of ours."""

    def write(self, file: Path) -> None:
        write_whole(file, json.dumps(asdict(self), indent=1, ensure_ascii=False))

    def fill(self) -> Artifact:
        stage = importlib.import_module(self.module).STAGE
        inputs = {
            name: Artifact(Path(path), self.bases[name]) if name in self.bases else read(Path(path))
            for name, path in self.inputs.items()
        }
        live = {**self.live}
        if "machine" in live:
            live["machine"] = Machine.model_validate(live["machine"])
        return build(stage, self.config, root=Path(self.root), inputs=inputs, **live)


def main(file: str) -> int:
    try:
        order = Order(**json.loads(Path(file).read_text(encoding="utf-8")))
        # Without a section `method` nothing is known of 4 bit: a stage that only reads files imports little anyway.
        leave_out(unused(bnb=order.config.get("method", {}).get("bnb", True) is not None, zero3=False))
        order.fill()
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

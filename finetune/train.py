"""The main job: `accelerate launch finetune/train.py recipe=legal [model=] [method=] [machine=] [any.key=value]`.

The pipeline on one screen, and the only file that knows the order of the stages.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Launched as a script, Python puts this folder first on the path; modules are imported as finetune.* instead.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
# Idle threads must sleep, not spin: a step went from 3.7 to 22 s when another process used a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from finetune.artifacts import Artifact, Stage  # noqa: E402
from finetune.config import Recipe, load  # noqa: E402
from finetune.config.model import Model  # noqa: E402
from finetune.config.recipe import without_places  # noqa: E402
from finetune.config.section import Section  # noqa: E402
from finetune.errors import RecipeError  # noqa: E402
from finetune.libraries import leave_out, unused  # noqa: E402
from finetune.ranks import build_first, build_in_child, build_together, hold, is_first, rank, world  # noqa: E402

_FOLDER = re.compile(r"""[=:,\s'"(\[{][/~]""")
USAGE = """usage: accelerate launch finetune/train.py recipe=NAME [model=] [method=lora|qlora] [machine=] [tracking=]
                                           [stages=[sft,dpo]] [any.key=value] [--config-dir DIR]
see also: finetune --help; finetune plan recipe=NAME"""


def run(recipe: Recipe, say: Callable[[str], None], words: Sequence[str] = ()) -> Path:
    """PREPARE, training, BASES (4-bit only), MERGE, SCORE, PROOF, EXPORT (if asked), HANDOFF. Returns the bundle."""
    from finetune import dpo, pairs, sft
    from finetune.base import find_base
    from finetune.tracking import Tracker

    work = Path(recipe.work)
    work.mkdir(parents=True, exist_ok=True)
    base = find_base(recipe.model)
    machine = recipe.machine.model_dump(mode="json")

    def child(module: Any, live: dict[str, Any], **inputs: Artifact) -> Artifact:
        config = identity(recipe, module.Config)
        made = build_in_child(module.STAGE, module.__name__, config, root=work, inputs=inputs, say=say, live=live)
        done[made.stage] = made
        tracker.follow(made)
        return made

    documents, prepared = prepare(recipe, base, say)
    done: dict[str, Artifact] = {"prepare": prepared}
    training: dict[str, tuple[Stage, type[Section]]] = {
        "cpt": (sft.CPT_STAGE, sft.CptConfig),
        "sft": (sft.SFT_STAGE, sft.Config),
        "dpo": (dpo.STAGE, dpo.Config),
    }
    adapter: Artifact | None = None
    with Tracker.open(recipe, work, prepared.digest) as tracker:
        tracker.follow(prepared)
        live: dict[str, Any] = {"machine": recipe.machine, "tracker": tracker, "say": say}
        for name in recipe.stages:
            inputs = {"base": base, "prepared": prepared}
            if name == "dpo":
                assert adapter is not None, "checks asks for sft before dpo"
                inputs["adapter"] = adapter
                inputs["preferences"] = child(pairs, {"machine": machine}, **inputs)
            elif adapter is not None:
                inputs["start"] = adapter
            stage, fields = training[name]
            adapter = done[name] = build_together(stage, identity(recipe, fields), root=work, inputs=inputs, **live)
            tracker.follow(adapter)
        assert adapter is not None, "checks asks for at least one training stage"
        if "torch" in sys.modules:  # where nothing was trained it is not loaded just for this
            from finetune.collective import leave

            leave()
        if not is_first():
            return work / "bundle"
        from finetune import bases, export, handoff, merge, proof  # not before: the first step would wait for them
        from finetune.handoff.publish import newest, publish
        from finetune.score import stage as score
        inputs = {"base": base, "adapter": adapter}
        if recipe.method.bnb is not None:
            inputs["bases"] = child(bases, {"machine": machine}, **inputs, prepared=prepared)
        merged = child(merge, {}, **inputs)
        inputs = {"base": base, "prepared": prepared, "adapter": adapter, "checkpoint": merged}
        before = {"sft": done["sft"]} if "dpo" in recipe.stages else {}
        scores = child(score, {"machine": machine, "answers": str(work / "answers")}, **inputs, **before)
        parity = child(proof, {"machine": machine}, **inputs)
        tracker.conclude(recipe, base=base, prepared=prepared, scores=scores, proof=parity)
        if recipe.export:
            asked = {"prepared": prepared, "checkpoint": merged, "scores": scores, "proof": parity}
            inputs["exported"] = child(export, {"machine": machine}, **asked)
        facts = {
            "adapters": {name: str(done[name].path) for name in recipe.stages},
            "stages": {name: str(artifact.path) for name, artifact in done.items()},
            "documents": {"root": str(recipe.documents), "files": documents.facts["sources"]},
            "previous": newest(work),
            "config": without_places(recipe.model_dump(mode="json")), "words": without_folders(words),
        }
        bundle = child(handoff, {"run_facts": facts, "machine": machine}, **inputs, scores=scores, proof=parity)
    return publish(bundle, work, recipe.handoff.signing_key)


def prepare(recipe: Recipe, base: Artifact, say: Callable[[str], None]) -> tuple[Artifact, Artifact]:
    """(the documents, Prepared), the datasheet page of it in the work folder."""
    from finetune.corpus import prepare
    from finetune.corpus.engine import Engine
    from finetune.corpus.finding import find_documents
    from finetune.datasheet import page as datasheet

    documents = find_documents(recipe.sources, recipe.documents, recipe.prepare.files)
    inputs, work = {"base": base, "documents": documents}, Path(recipe.work)
    config, engine = identity(recipe, prepare.Config), Engine.of(recipe.machine)
    prepared = build_first(prepare.STAGE, config, root=work, inputs=inputs, engine=engine, say=say)
    if is_first():
        say(f"  datasheet: {datasheet.write(work, prepared, recipe, documents.facts['sources'])}")
    return documents, prepared


def without_folders(words: Sequence[str]) -> list[str]:
    """What was typed as a report may show it: no folder of this machine, no account, nothing of who hands over."""
    hidden = ("work=", "data_root=", "handoff.", "tracking.entity=")
    return [word for word in words if not word.lstrip("+~").startswith(hidden) and not _FOLDER.search(word)]


def identity(recipe: Recipe, config: type[Section]) -> dict[str, Any]:
    """The part of the recipe that changes a stage's result, and nothing else: the `Config` of the stage's module.

    Weights are known by the digest of the `base` input, so where they lie does not matter.
    """
    fields = {name: _part(getattr(recipe, name), field.annotation) for name, field in config.model_fields.items()}
    if isinstance(fields.get("model"), Model):
        # What is only said of a model is on the card: HANDOFF's, whose config has the section of that name.
        silent = {} if "handoff" in fields else {"note": "", "licence": ""}
        fields["model"] = recipe.model.model_copy(update={"path": None, **silent})
    plain: dict[str, Any] = config(**fields).model_dump(mode="json")
    return plain


def _part(value: Any, wanted: Any) -> Any:
    """A stage that names a narrower section gets the fields that it names."""
    narrower = isinstance(value, Section) and isinstance(wanted, type) and not isinstance(value, wanted)
    return {name: getattr(value, name) for name in wanted.model_fields} if narrower else value


def ready(words: Sequence[str], config_dir: Path | None = None, *, elsewhere: bool = False) -> Recipe:
    """The checked recipe with its machine resolved; a RecipeError with the plan when the machine cannot hold it.

    `elsewhere`: GPUs that the recipe names need not be here, as for PREPARE on a login node.
    """
    from finetune.checks import check
    from finetune.checks.data import check_writable
    from finetune.checks.steps import check_key
    from finetune.memory import here, plan, settle

    recipe = load(words, config_dir=config_dir)
    found = here(Path(recipe.work))
    launched = None if elsewhere else world()
    if elsewhere and recipe.machine.device == "cuda":
        asked, problems = None, [*check(recipe), *check_writable(Path(recipe.work))]
    else:
        asked, problems = found, check(recipe, here=found, launched=launched)
    if problems := [*problems, *check_key(recipe, os.environ)]:
        raise RecipeError(problems)
    recipe = settle(recipe, found, launched=launched)
    planned = plan(recipe, here=asked)
    if not planned.fits:
        if is_first():
            print(planned.render())
        raise RecipeError(planned.problems)
    return recipe


def main(words: Sequence[str]) -> int:
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    say = print_line if is_first() else (lambda line: None)
    try:
        config_dir, words = split_config_dir(words)
        recipe = ready(words, config_dir)
        with hold(Path(recipe.work)):
            asked = [str(getattr(recipe, name).trl.get("optim", "adamw_torch")) for name in recipe.stages]
            zero3 = recipe.machine.layout == "zero3"
            leave_out(unused(bnb=recipe.method.bnb is not None, zero3=zero3, optimizers=asked))
            leave_out(["scipy"])  # for the losses of image models in transformers, 0.2 s; the baselines are in a child
            bundle = run(recipe, say, words)
    except RecipeError as error:
        print(error if is_first() else f"rank {rank()}: {'; '.join(map(str, error.problems))}", file=sys.stderr)
        return 2
    say(f"bundle: {bundle}")
    say(f"report: {bundle / 'report.html'}")
    signed = recipe.handoff.signing_key
    key = f" --key {Path(signed).with_name('signing.pub')}" if signed else ""
    say(f"next:   {own_command()} verify {bundle}{key} && less {bundle / 'serve/README.md'}")
    say(f"serve:  {own_command()} serve {bundle} --check  (vLLM for CPUs: scripts/setup.sh serve)")
    return 0


def split_config_dir(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Take `--config-dir DIR` (or `--config-dir=DIR`) out of the words."""
    rest, folder = list(words), None
    for index, word in enumerate(rest):
        if word.startswith("--config-dir="):
            folder = Path(rest.pop(index).partition("=")[2])
            break
        if word == "--config-dir":
            if index + 1 == len(rest):
                raise RecipeError.one(word, None, "needs a folder", "--config-dir mine/")
            folder = Path(rest.pop(index + 1))
            rest.pop(index)
            break
    return folder, rest


def own_command() -> Path:
    """The `finetune` command beside this interpreter: whoever typed `make demo` has no environment activated."""
    command = Path(sys.executable).with_name("finetune")
    return command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command


def print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The `finetune` command. Its subcommands run the very same functions as the main job."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import __version__, compare, serve
from finetune.errors import RecipeError
from finetune.score.options import options as options_of_score
from finetune.verify import command as receipt

if TYPE_CHECKING:
    from finetune.artifacts import Artifact
    from finetune.config import Recipe

EPILOG = """examples:
  finetune init ~/documents --name ours
  finetune plan recipe=legal model=qwen3_32b machine=a100x8
  finetune train recipe=legal model=smollm2_135m
  finetune verify work/legal/bundle --deep
  finetune serve work/legal/bundle --check
  finetune score http://localhost:8000 recipe=legal
  finetune compare work/legal work/legal-faster --html compared.html
the main job over several GPUs: accelerate launch finetune/train.py recipe=legal"""


_CLOSED_PIPE = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse gives up on key=value words that follow an option such as --config-dir
        if not hasattr(options, "words") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.words += rest
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `finetune plan ... | head` has seen enough. Asked of the output alone: with SIGPIPE's default a server that
        # hangs up would end the process as well, without a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="From a folder of domain documents to a checkpoint that a serving team can trust.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "a first recipe for a folder of documents (PDF, DOCX, HTML, CSV, JSONL ...), into mine/NAME.yaml"
    beginning = commands.add_parser("init", help=text, description=text)
    beginning.add_argument("folder", type=Path, help="the folder with the documents")
    beginning.add_argument("--name", help="name of the recipe (the folder's)")
    beginning.add_argument("--to", type=Path, default=Path("mine"), metavar="DIR", help="where NAME.yaml goes (mine/)")
    beginning.set_defaults(run=_init)
    for name, run, text in (
        ("train", _train, "the main job on one process: documents to bundle"),
        ("plan", _plan, "memory, disk, time and cost before anything starts"),
        ("prepare", _prepare, "documents to tokenised examples, ledger and datasheet, nothing more"),
        ("show", _show, "examples as they are trained, the trained tokens coloured, or as a page (--html)"),
        ("config", _config, "the resolved configuration, as YAML"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("words", nargs="*", metavar="key=value", help="recipe=legal model=... any.key=value")
        command.add_argument("--config-dir", type=Path, help="folder with private recipes (*.yaml) and groups")
        if name == "plan":
            command.add_argument("--json", action="store_true", help="the same facts as JSON")
        if name == "prepare":
            text = "only the first N rows of each source, spread over its files; nothing is published"
            command.add_argument("--dry-run", type=int, metavar="N", help=text)
        if name == "show":
            command.add_argument("--rows", type=int, default=4, help="how many examples (4)")
            command.add_argument("--id", help="all examples of this record")
            command.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
        command.set_defaults(run=run)
    merge = commands.add_parser("merge", help="merge a PEFT adapter into its base, tensor by tensor")
    merge.add_argument("--base", type=Path, required=True)
    merge.add_argument(
        "--adapter", type=Path, required=True, action="append", help="a PEFT adapter; several are merged in this order"
    )
    merge.add_argument("--out", type=Path, required=True)
    merge.add_argument(
        "--trained-on", metavar="BASE",
        help="for a 4-bit adapter from elsewhere, what its base was: nf4-double, nf4, fp4 or as-it-is",
    )
    merge.set_defaults(run=_merge)
    verify = commands.add_parser("verify", help="check a checkpoint or bundle as its receiver would")
    verify.add_argument("directory", type=Path)
    receipt.options(verify)
    verify.set_defaults(run=receipt.run)
    keygen = commands.add_parser("keygen", help="make a key pair to sign bundles with (handoff.signing_key)")
    keygen.add_argument("folder", type=Path, help="signing.key (secret, mode 0600) and signing.pub are written there")
    keygen.add_argument("--demo", action="store_true", help="a pair that says it proves no origin, for demonstrations")
    keygen.set_defaults(run=_keygen)
    text = "any model alone on a recipe's test rows: a model directory, a bundle, or an OpenAI-compatible server"
    scoring = commands.add_parser("score", help=text, description=text)
    options_of_score(scoring)
    scoring.set_defaults(run=_score)
    text = "a finished run's report once more, from its stored rows and results; says whether the bytes are the same"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument("work", type=Path, help="work folder of a run, for example work/legal")
    report.add_argument("--out", type=Path, metavar="DIR", help="where the three files go (WORK/report)")
    report.add_argument("--language", choices=("en", "zh"), help="another language than the recipe's")
    report.set_defaults(run=_report)
    text = "what differs between runs, and what came of it: configuration, data, curves, scores, answers, gates, cost"
    versus = commands.add_parser("compare", help=text, description=text)
    compare.options(versus)
    versus.set_defaults(run=compare.run)
    text = "start vLLM on a bundle, or ask it the golden prompts and compare (--check)"
    server = commands.add_parser("serve", help=text, description=text)
    serve.options(server)
    server.set_defaults(run=serve.run)
    return parser


def _init(options: argparse.Namespace) -> int:
    from finetune.draft import recipe

    return recipe.run(options.folder, options.name, options.to)


def _train(options: argparse.Namespace) -> int:
    from finetune.train import main as train

    folder = [f"--config-dir={options.config_dir}"] if options.config_dir else []
    return train([*options.words, *folder])


def _plan(options: argparse.Namespace) -> int:
    """0 when it fits; 2 when it does not, after the plan that says so (`scripts/slurm/train.sbatch` asks)."""
    import json

    from finetune.checks import check
    from finetune.checks.forms import recognised
    from finetune.checks.steps import check_key
    from finetune.config import load
    from finetune.memory import here, plan, settle
    from finetune.progress import look

    recipe = load(options.words, config_dir=options.config_dir)
    if problems := [*check(recipe), *check_key(recipe, os.environ)]:
        raise RecipeError(problems)
    forms = list(recognised(recipe))
    found = here(Path(recipe.work))
    machine = recipe.machine
    # The disk counts where the run would be: here, unless the machine has GPUs that this one lacks.
    local = machine.device != "cuda" or len(found.gpus) >= -(-machine.processes // machine.nodes)
    recipe = settle(recipe, found)
    progress, counted = look(recipe)
    planned = plan(recipe, counted=counted, progress=progress, here=found if local else None)
    print(json.dumps(planned.to_json(), indent=1) if options.json else "\n".join([planned.render(), *forms]))
    return 0 if planned.fits else 2


def _prepare(options: argparse.Namespace) -> int:
    from finetune.datasheet import page as datasheet
    from finetune.train import ready

    recipe = ready(options.words, options.config_dir, elsewhere=True)
    if options.dry_run is not None:
        return _look(recipe, options.dry_run)
    prepared, documents = _prepared(recipe)
    page = datasheet.write(Path(recipe.work), prepared, recipe, documents.facts["sources"])
    print(f"prepared: {prepared.path}\ndatasheet: {page}")
    return 0


def _look(recipe: "Recipe", rows: int) -> int:
    """PREPARE on the first rows of each source, in a folder of its own: nothing is published, no document hashed."""
    import shutil

    from finetune.artifacts import Artifact, hash_file
    from finetune.base import find_base
    from finetune.corpus import prepare
    from finetune.corpus.ledger import table
    from finetune.datasheet import page as datasheet
    from finetune.train import identity

    folder = Path(recipe.work) / "dry-run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base, documents = find_base(recipe.model), Artifact(recipe.documents, {"facts": {}})
    prepare.run(identity(recipe, prepare.Config), out=folder, base=base, documents=documents, limit=rows)
    print(table((folder / "ledger.json").read_text(encoding="utf-8")))
    files = {"datasheet.json": hash_file(folder / "datasheet.json")}
    made = Artifact(folder, {"stage": "prepare", "digest": f"dry run of {rows} rows", "files": files})
    print(f"datasheet: {datasheet.write(folder, made, recipe, {})}")
    return 0


def _prepared(recipe: "Recipe") -> tuple["Artifact", "Artifact"]:
    """(Prepared, the documents it was made from)."""
    from finetune.artifacts import build, find
    from finetune.base import find_base
    from finetune.corpus import prepare
    from finetune.corpus.engine import Engine
    from finetune.corpus.finding import find_documents
    from finetune.ranks import hold
    from finetune.train import identity

    config, root = identity(recipe, prepare.Config), Path(recipe.work)
    documents = find_documents(recipe.sources, recipe.documents, recipe.prepare.files)
    inputs = {"base": find_base(recipe.model), "documents": documents}
    done = find(prepare.STAGE, config, root=root, inputs=inputs) is not None
    with nullcontext() if done else hold(root):  # finished work is read while a run is training beside it
        return build(prepare.STAGE, config, root=root, inputs=inputs, engine=Engine.of(recipe.machine)), documents


def _score(options: argparse.Namespace) -> int:
    from finetune.checks import check
    from finetune.config import load
    from finetune.memory import here, settle
    from finetune.score import command, stage
    from finetune.train import identity

    recipe = load(options.words, config_dir=options.config_dir)
    if problems := check(recipe):
        raise RecipeError(problems)
    recipe = settle(recipe, here(Path(recipe.work)))  # not held against the plan: nothing is trained
    return command.run(options, recipe, identity(recipe, stage.Config), _prepared(recipe)[0])


def _show(options: argparse.Namespace) -> int:
    from finetune import show

    return show.run(
        options.words, config_dir=options.config_dir, rows=options.rows, only=options.id, html=options.html
    )


def _config(options: argparse.Namespace) -> int:
    import yaml

    from finetune.config import load

    recipe = load(options.words, config_dir=options.config_dir)
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from finetune.merge import merge_adapter

    first, *then = options.adapter
    merge_adapter(
        options.base, first, options.out, then=then, trained_on=options.trained_on,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    return 0


def _report(options: argparse.Namespace) -> int:
    from finetune.report import rebuild

    return rebuild.run(options.work, options.out, options.language)


def _keygen(options: argparse.Namespace) -> int:
    from finetune.signing import keygen

    private, public = keygen(options.folder, demo=options.demo)
    print(f"secret: {private} (for handoff.signing_key; keep it to yourself)")
    print(f"public: {public} (give it to receivers, by another way than the bundle)")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(main())

"""The house rules of DESIGN as tests: who may import whom, what may stand where, how things are called."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "finetune"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "findings", "artifacts", "config", "kept", "metrics", "provenance", "wire"},
    {"chat", "corpus", "memory", "verify", "checks", "embedded", "wheels", "gates", "shards", "checkpoint", "signing",
     "leftovers", "order", "pulse", "resume", "spikes", "template"},
    {"libraries", "base", "ranks", "child", "generate", "collective", "guard", "loop", "tracking", "adapter", "deltas",
     "stream", "fourbit", "head", "parity", "quantise", "asked", "exact",
     "arguments", "attention", "fused", "reference", "sequence"},
    {"sft", "dpo", "pairs", "bases", "merge", "proof", "export", "score", "handoff", "report", "datasheet", "serve"},
    {"train", "progress", "show", "compare", "draft", "cli"},
]
STAGES = {"sft", "dpo", "pairs", "bases", "merge", "proof", "export", "score", "handoff"}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "wandb"}


TRAINER = {"head", "arguments", "attention", "collective", "fused", "guard", "loop", "sequence"}
"""Classes on top of torch and the Trainer: stage modules import these rooms inside their functions."""


def room(path: Path) -> str:
    """`finetune/score/statistics.py` -> `score`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next((index for index, names in enumerate(LAYERS) if name in names), -1)


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = top_level(tree) if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "finetune":
                found |= {f"finetune.{alias.name}" for alias in node.names}
    return found


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import; `if TYPE_CHECKING:` blocks do not."""
    return [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]


def own_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("finetune.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_layers_only(path: Path) -> None:
    here = layer(room(path)) if path.parent != PACKAGE or path.stem != "__init__" else 0
    assert here >= 0, f"{path.name} has no place in LAYERS"
    for other in own_rooms(path) - {room(path), "__version__"}:
        assert layer(other) <= here, f"{path.name} imports finetune.{other} from a higher layer"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in STAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_never_import_each_other(path: Path) -> None:
    allowed = {("export", "score")}  # the same prompts and statistics: score/prompts.py and statistics.py are libraries
    for other in own_rooms(path) & STAGES - {room(path)}:
        assert (room(path), other) in allowed
        assert not any(name.startswith("finetune.score.stage") for name in imports(path))


@pytest.mark.parametrize(
    "path", [p for p in MODULES if layer(room(p)) <= 1], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_lower_floors_know_no_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_loads_heavy_libraries_when_imported(path: Path) -> None:
    if room(path) in TRAINER:
        return
    own = {name.split(".")[1] for name in imports(path, top_only=True) if name.startswith("finetune.")}
    assert not own & TRAINER
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & (HEAVY | {"sklearn", "matplotlib"})


def test_only_config_load_knows_hydra() -> None:
    knowing = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if {name.split(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}
    }
    assert knowing == {"config/load.py"}


def test_only_ranks_reads_the_rank() -> None:
    reading = {path.name for path in MODULES if '"RANK"' in path.read_text(encoding="utf-8")}
    assert reading == {"ranks.py"}


def test_no_module_hides_a_library_or_the_standard_library() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    names -= {"__init__", "__pycache__"}
    taken = names & (set(sys.stdlib_module_names) | set(packages_distributions()))
    assert not taken


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_foreign_code_runs(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("trust_remote_code", "False") == "False"
            assert name not in {"pickle.load", "pickle.loads", "eval", "exec", "yaml.load"}
            if name == "torch.load":
                assert keywords.get("weights_only") == "True"


def test_domain_words_stand_only_in_recipes_and_data() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8").lower()
        for word in ("excavator", "constitution", "icd-10", "wordnet", "gaap"):
            assert word not in text, f"{word} in {path.name}"


def test_the_pipeline_fits_on_a_screen() -> None:
    tree = ast.parse((PACKAGE / "train.py").read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert run.end_lineno is not None
    assert run.end_lineno - run.lineno < 75


def test_importing_every_module_imports_no_torch() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if room(path) not in TRAINER
    ]
    script = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    script += "assert not {'torch', 'transformers', 'trl', 'wandb', 'sklearn'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", script], check=True)

"""The locks, and the scripts behind `make setup` and `make test`, run in copies: nothing installed is touched."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = ("train", "dev", "serve", "quantise")
NINE = ("peft", "trl", "transformers", "datasets", "deepspeed", "accelerate", "bitsandbytes", "wandb", "hydra-core")


def _project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^([a-z0-9.-]+)==(\S+)", text))


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_a_lock_has_a_hash_and_none_names_an_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"(?m)^[a-z0-9.-]+==.*(?:\n .*)*", text)
    assert len(entries) == len(_pins(name)) > 10
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"--(index-url|extra-index-url|find-links)|https?://|file:", text)


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_holds_torch_or_what_only_a_gpu_needs(name: str) -> None:
    heavy = re.compile(r"torch|torchvision|torchaudio|triton|cupy.*|nvidia-(?!ml-py$).*|opencv.*")
    assert [package for package in _pins(name) if heavy.fullmatch(package)] == []


def test_the_training_lock_agrees_with_every_direct_dependency() -> None:
    pins = _pins("train")
    for line in _project()["dependencies"]:  # type: ignore[attr-defined]
        wanted = Requirement(line)
        if wanted.name != "torch":
            version = pins.get(wanted.name.lower())
            assert version is not None, f"{line} is not in requirements/train.txt: run scripts/lock.sh train"
            assert wanted.specifier.contains(version), f"{line}: the lock has {version}; run scripts/lock.sh train"


def test_two_locks_of_one_environment_never_pin_two_versions() -> None:
    train, dev = _pins("train"), _pins("dev")
    assert {name: (train[name], dev[name]) for name in train.keys() & dev.keys() if train[name] != dev[name]} == {}


def test_torch_has_one_version_in_the_project_and_in_the_setup_script() -> None:
    (torch,) = [line for line in _project()["dependencies"] if line.startswith("torch")]  # type: ignore[attr-defined]
    assert f"{torch} " in (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")


def test_the_project_declares_what_it_imports_and_imports_what_it_declares() -> None:
    module_of = {
        "beautifulsoup4": "bs4",
        "huggingface-hub": "huggingface_hub",
        "hydra-core": "hydra",
        "lm-eval": "lm_eval",
        "python-docx": "docx",
        "pyyaml": "yaml",
        "scikit-learn": "sklearn",
    }
    names = [Requirement(line).name.lower() for line in _project()["dependencies"]]  # type: ignore[attr-defined]
    assert set(NINE) <= set(names)
    extras: dict[str, list[str]] = _project()["optional-dependencies"]  # type: ignore[assignment]
    for extra in ("quantise", "cluster", "harness"):  # `serve` is a server, started and never imported
        names += [Requirement(line).name for line in extras[extra]]
    imported = {"accelerate"}  # starts finetune/train.py
    for path in (ROOT / "finetune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                imported |= {word.value.split(".")[0] for word in node.args if isinstance(word, ast.Constant)}
    assert {module_of.get(name, name) for name in names} == imported - sys.stdlib_module_names - {"finetune"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files that the scripts read, and no environment."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "finetune").mkdir()
    for name in ("pyproject.toml", "Makefile", "finetune/wheels.py", "finetune/embedded.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _run(command: list[str], clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTHON", "FINETUNE_HOME"}}
    return subprocess.run(
        command, cwd=clone, env=inherited | environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_setup_with_another_python_says_which_one_is_needed(clone: Path) -> None:
    old = clone / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    outcome = _run(["make", "setup"], clone, PYTHON=str(old))
    assert outcome.returncode != 0
    assert "is not CPython 3.11 (Python 3.9.2)" in outcome.stderr
    assert not (clone / ".venv").exists()


def test_setup_of_an_unknown_environment_lists_those_that_exist(clone: Path) -> None:
    outcome = _run(["scripts/setup.sh", "serving"], clone)
    assert outcome.returncode != 0
    assert "train, serve, quantise" in outcome.stderr


def test_demo_of_an_unknown_recipe_lists_those_that_exist(clone: Path) -> None:
    (clone / "recipes").mkdir()
    (clone / "recipes" / "legal.yaml").write_text("", encoding="utf-8")
    (clone / "scripts" / "setup.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    outcome = _run(["make", "demo", "RECIPE=leagl"], clone)
    assert outcome.returncode != 0
    assert "there is no recipes/leagl.yaml; there are: legal" in outcome.stderr


PASSES = "def test_passes():\n    assert True\n"
SKIPS = "import pytest\n\n@pytest.mark.skip(reason='no')\ndef test_skips():\n    pass\n"  # a file that CI must refuse
FAILS = "def test_fails():\n    assert False\n"


def _tests(clone: Path, **files: str) -> dict[str, str]:
    (clone / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", clone / "tests" / "conftest.py")
    for name, text in files.items():
        (clone / "tests" / f"test_{name}.py").write_text(text, encoding="utf-8")
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_skipped_test_fails_the_run_in_ci_and_only_there(clone: Path, ci: str, code: int) -> None:
    environment = _tests(clone, passes=PASSES, skips=SKIPS)
    outcome = _run(["scripts/test.sh", "fast"], clone, CI=ci, **environment)
    assert outcome.returncode == code, outcome.stdout
    assert ("counts as failed: tests/test_skips.py::test_skips" in outcome.stdout) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "group", "code", "line"),
    [
        ({"a": PASSES}, "fast", 0, "fast .* passed"),
        ({"a": PASSES, "b": FAILS}, "fast", 1, "fast .* FAILED, exit code 1"),
        ({"a": PASSES}, "slow", 1, "holds no test"),
        ({"a": "def test_broken(:\n"}, "fast", 1, "FAILED, exit code 2"),
        ({"a": PASSES}, "quick", 1, "FAILED"),
    ],
)
def test_each_exit_code_of_pytest_becomes_a_verdict(
    clone: Path, files: dict[str, str], group: str, code: int, line: str
) -> None:
    outcome = _run(["scripts/test.sh", group], clone, **_tests(clone, **files))
    assert outcome.returncode == code, outcome.stdout
    assert re.search(line, outcome.stdout)


@pytest.mark.slow
def test_a_later_group_runs_when_an_earlier_one_failed(clone: Path) -> None:
    slow = "import pytest\n\n@pytest.mark.slow\ndef test_slow():\n    pass\n"
    outcome = _run(["scripts/test.sh", "fast", "slow"], clone, **_tests(clone, a=FAILS, b=slow))
    assert outcome.returncode == 1
    assert re.search("slow .* passed", outcome.stdout)

"""Seeded defects: each is a mistake that some peer shipped, put into a copy of our code, and must turn a test red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = yaml.safe_load((Path(__file__).parent / "mutations.yaml").read_text(encoding="utf-8"))
PART, PARTS = map(int, os.environ.get("MUTATIONS", "0/1").split("/"))
"""Which part of how many is tried: `scripts/test.sh slow` takes a quarter, another one after each commit."""
TESTS_FAILED = 1  # pytest's exit code; 2, 4 and 5 mean that nothing was tried


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what is only read: code is copied, data and models are linked."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("finetune", "tests", "configs", "recipes", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("data", ".cache", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_tests(folder: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_copy_itself_is_what_the_tests_import(copy: Path) -> None:
    script = "import finetune; print(finetune.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).is_relative_to(copy)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS[PART::PARTS], ids=lambda mutation: mutation["name"])
def test_a_seeded_defect_turns_a_test_red(copy: Path, mutation: dict) -> None:
    file = copy / mutation["file"]
    sound = file.read_text(encoding="utf-8")
    assert sound.count(mutation["old"]) == 1, f"{mutation['name']}: the code it changes has moved; mend mutations.yaml"
    file.write_text(sound.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    try:
        result = run_tests(copy, mutation["tests"])
    finally:
        file.write_text(sound, encoding="utf-8")
    assert result.returncode == TESTS_FAILED, f"{mutation['name']} was not caught:\n{result.stdout[-2000:]}"


def test_each_defect_is_in_one_part_and_the_code_that_it_changes_stands() -> None:
    assert 0 <= PART < PARTS
    for mutation in MUTATIONS:
        found = (ROOT / mutation["file"]).read_text(encoding="utf-8").count(mutation["old"])
        assert found == 1, f"{mutation['name']}: the code it changes has moved; mend mutations.yaml"


def test_there_are_at_least_fifteen_defects_with_a_pain_behind_each() -> None:
    assert len({mutation["name"] for mutation in MUTATIONS}) >= 15
    assert all(mutation["why"] for mutation in MUTATIONS)

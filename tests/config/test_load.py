"""One recipe, typed once, all problems at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.config import Recipe, choices, load
from finetune.config.recipe import without_places
from finetune.errors import RecipeError


def problems_of(*words: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(words, config_dir=config_dir)
    return [str(problem) for problem in caught.value.problems]


def test_every_override_reaches_the_recipe() -> None:
    recipe = load(["recipe=maintenance", "model=smollm2_135m", "sft.max_steps=7", "sft.trl.learning_rate=0.5"])
    assert (recipe.sft.max_steps, recipe.sft.trl["learning_rate"]) == (7, 0.5)


def test_the_command_line_wins_over_the_recipe() -> None:
    assert load(["recipe=maintenance", "stages=[sft]"]).stages == ("sft",)


def test_a_typo_in_a_key_gets_the_nearest_key() -> None:
    (problem,) = problems_of("recipe=maintenance", "sft.batch_sise=8")
    assert problem.startswith("sft.batch_sise=8: is not a key of this section: did you mean batch_size?")


def test_a_typo_below_a_named_task_is_found_too() -> None:
    task = next(iter(load(["recipe=maintenance"]).tasks))
    (problem,) = problems_of("recipe=maintenance", f"tasks.{task}.promt=x")
    assert f"tasks.{task}.promt" in problem
    assert "did you mean prompt?" in problem


def test_all_problems_of_a_config_come_at_once() -> None:
    found = problems_of("recipe=maintenance", "sft.batch_size=many", "seeed=1", "dpo.max_steps=-1", "gates.x=1")
    assert {line.split("=")[0] for line in found} == {"sft.batch_size", "seeed", "dpo.max_steps", "gates.x"}


def test_a_recipe_that_is_not_there_is_answered_with_those_that_are() -> None:
    (problem,) = problems_of("recipe=maintenence")
    assert "did you mean maintenance?" in problem


def test_no_recipe_at_all_says_which_there_are() -> None:
    (problem,) = problems_of("model=smollm2_135m")
    assert "say which recipe to run" in problem


def test_a_word_without_equals_is_answered() -> None:
    (problem,) = problems_of("recipe=maintenance", "verbose")
    assert "is not key=value" in problem


def test_a_key_is_taken_out_with_a_tilde() -> None:
    words = ["recipe=maintenance", "model=qwen3_32b"]
    assert load(words).sft.epochs == 2
    assert load([*words, "~sft.trl.num_train_epochs"]).sft.epochs == 1


def test_rows_are_never_truncated() -> None:
    (problem,) = problems_of("recipe=maintenance", "prepare.length.policy=truncate")
    assert "prepare.length.policy=truncate" in problem


def test_a_private_recipe_is_found_in_config_dir(tmp_path: Path) -> None:
    content = yaml.safe_load(choices("recipe")["maintenance"].read_text())
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump({**content, "title": "Ours"}))
    assert load(["recipe=ours"], config_dir=tmp_path).title == "Ours"


def test_a_private_model_is_found_in_config_dir(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = choices("model")["tiny_qwen3"].read_text().replace("num_hidden_layers: 2", "num_hidden_layers: 3")
    (tmp_path / "model" / "ours.yaml").write_text(text)
    recipe = load(["recipe=maintenance", "model=ours"], config_dir=tmp_path)
    assert recipe.model.architecture.num_hidden_layers == 3


@pytest.mark.parametrize("name", ["model/tiny_qwen3.yaml", "machine/auto.yaml", "legal.yaml"])
def test_a_private_file_with_a_name_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("title: never read\n")
    (problem,) = problems_of("recipe=legal", "model=tiny_qwen3", config_dir=tmp_path)
    assert str(tmp_path / name) in problem
    assert "is a name of the toolkit already" in problem


def test_a_broken_recipe_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("title: [a\nb: c")
    (problem,) = problems_of("recipe=ours", config_dir=tmp_path)
    assert "ours.yaml" in problem
    assert "line 2" in problem


def test_a_config_dir_that_is_not_there_is_answered(tmp_path: Path) -> None:
    (problem,) = problems_of("recipe=maintenance", config_dir=tmp_path / "no")
    assert "is not a folder" in problem


def test_a_loaded_recipe_cannot_change() -> None:
    recipe = load(["recipe=maintenance"])
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_recipe_survives_a_round_trip_through_json() -> None:
    recipe = load(["recipe=maintenance"])
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_config_works_from_any_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune.cli", "config", "recipe=maintenance"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert yaml.safe_load(result.stdout)["name"] == "maintenance"


def test_the_sample_documents_are_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(["recipe=maintenance"])
    assert (recipe.documents / "work_orders.csv").is_file()
    (tmp_path / "data" / "maintenance").mkdir(parents=True)
    assert recipe.documents == Path("data/maintenance"), "what lies where the command is typed wins"


def test_what_others_see_of_a_recipe_names_no_folder_and_no_account() -> None:
    words = ["work=/home/alice/w", "data_root=/home/alice/d", "model.path=/home/alice/m", "tracking.entity=alice"]
    recipe = load(["recipe=maintenance", *words, "sources.work_orders.path=/home/alice/d/orders.csv"])
    shown = without_places(recipe.model_dump(mode="json"))
    assert "alice" not in str(shown)
    assert shown["sources"]["work_orders"]["path"] == "orders.csv"

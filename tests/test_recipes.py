"""Every recipe x model x method x machine composes, validates and passes every check that spans sections."""

import itertools

import pytest

from finetune.checks import check
from finetune.config import choices, load

GRID = list(itertools.product(*(sorted(choices(group)) for group in ("recipe", "model", "method", "machine"))))


@pytest.mark.parametrize(("recipe", "model", "method", "machine"), GRID)
def test_every_combination_is_valid(recipe: str, model: str, method: str, machine: str) -> None:
    loaded = load([f"recipe={recipe}", f"model={model}", f"method={method}", f"machine={machine}"])
    if (shared := loaded.machine.sequence_parallel) > 1:  # no DPO there, and only where heads come out even
        if loaded.model.architecture.num_key_value_heads % shared:
            assert "machine.sequence_parallel" in {problem.path for problem in check(loaded)}
            return
        loaded = loaded.model_copy(update={"stages": tuple(name for name in loaded.stages if name != "dpo")})
    problems = check(loaded)
    # A batch made for one CPU cannot be dealt to 16 GPUs: the message says which one can, and that one is valid.
    fixes = {}
    for problem in problems:
        assert problem.path.endswith("batch_size")
        assert problem.value < loaded.machine.processes
        stage = problem.path.partition(".")[0]
        fixes[stage] = getattr(loaded, stage).model_copy(update={"batch_size": loaded.machine.processes})
    assert check(loaded.model_copy(update=fixes)) == []


def test_the_four_domains_are_there() -> None:
    assert set(choices("recipe")) == {"finance", "legal", "maintenance", "medical"}


def test_at_least_two_recipes_run_dpo() -> None:
    assert sum("dpo" in load([f"recipe={name}"]).stages for name in choices("recipe")) >= 2


@pytest.mark.parametrize("recipe", sorted(choices("recipe")))
def test_a_recipe_holds_no_number_that_depends_on_the_model(recipe: str) -> None:
    import yaml

    content = yaml.safe_load(choices("recipe")[recipe].read_text())
    assert not {"model", "method", "machine", "cpt", "sft", "dpo"} & set(content)


@pytest.mark.parametrize("recipe", sorted(choices("recipe")))
def test_each_recipe_reads_documents_and_tables(recipe: str) -> None:
    paths = [source.path or "" for source in load([f"recipe={recipe}"]).sources.values()]
    suffixes = {path.rpartition(".")[2] for path in paths}
    assert suffixes & {"pdf", "html", "docx", "txt", "md"}
    assert suffixes & {"csv", "jsonl"}

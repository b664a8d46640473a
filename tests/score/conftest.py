"""A prepared corpus made by hand, the tiny model and a random adapter: scoring is tested without training."""

from pathlib import Path

import pytest
from handmade import as_artifact, make_prepared, make_random_adapter

from finetune.artifacts import Artifact


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def base(tiny_qwen3: Path) -> Artifact:
    return as_artifact(tiny_qwen3, "base", name="tiny")


@pytest.fixture(scope="session")
def adapter(base: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_random_adapter(base.path, tmp_path_factory.mktemp("adapter"))

"""The Recipe: one YAML loaded, checked and frozen."""

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.config.build import Built
from finetune.config.data import HERE, ReadyPreferences, Replay, Source, Task, TextUse
from finetune.config.evaluation import Gates, Handoff, Privacy, Score, Tracking
from finetune.config.export import Quantise, Scheme
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.prepare import Prepare
from finetune.config.section import Section
from finetune.config.training import Cpt, Dpo, Method, Sft
from finetune.errors import RecipeError

TrainingStage = Literal["cpt", "sft", "dpo"]


class Recipe(Section):
    """The domain, its data, its tasks, its stages, its gates, and how and where they run."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Names the work folder and the runs."""
    title: str
    description: str
    language: Literal["en", "zh"] = "en"
    licence: str
    """Licence of what is made from this data, for the model card."""
    limits: str = ""
    """What the result must not be used for, for the model card."""
    stages: tuple[TrainingStage, ...]
    """Training stages in order; PREPARE, SCORE, MERGE and HANDOFF always run."""
    seed: int = 0
    work: str
    """Folder for everything that is made: work/<recipe>."""
    data_root: str
    """Folder that holds the documents."""
    sources: dict[str, Source]
    build: dict[str, Built] = {}
    """Name -> a source that a builder makes of another one's rows, for tasks to use."""
    tasks: dict[str, Task]
    preferences: dict[str, ReadyPreferences] = {}
    """Better and worse answers that are there already; DPO trains on them beside those that PAIRS samples."""
    text: tuple[TextUse, ...] = ()
    general: dict[str, TextUse]
    """Kind -> general text on which forgetting is measured; never trained on."""
    replay: Replay | None = None
    prepare: Prepare = Prepare()
    cpt: Cpt
    sft: Sft
    dpo: Dpo
    model: Model
    method: Method
    machine: Machine
    score: Score = Score()
    export: tuple[Scheme, ...] = ()
    """Quantised models that are made beside the merged one, measured, and handed over where they keep the limits."""
    quantise: Quantise = Quantise()
    gates: Gates = Gates()
    privacy: Privacy = Privacy()
    handoff: Handoff = Handoff()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _take_forms(cls, given: Any) -> Any:
        """Tasks and preferences that say nothing of their rows take the conversations of a source with a form."""
        if not isinstance(given, dict) or not isinstance(given.get("sources"), dict):
            return given
        formed = {
            name for name, source in given["sources"].items() if isinstance(source, Mapping) and source.get("form")
        }
        uses = {key: given[key] for key in _FORMED if isinstance(given.get(key), dict)}
        return {**given, **{key: _formed(found, formed, _FORMED[key]) for key, found in uses.items()}}

    @property
    def documents(self) -> Path:
        """data_root as a path: from where the command was typed, else (sample corpora) from the toolkit's folder."""
        given = Path(self.data_root)
        return given if given.exists() or given.is_absolute() else HERE / given

    @property
    def main_task(self) -> str:
        return next(name for name, task in self.tasks.items() if task.main)

    @property
    def latency(self) -> dict[str, Any] | None:
        """What stands in score.latency_file. Raises RecipeError where that is no latency.json."""
        if self.score.latency_file is None:
            return None
        try:
            found = json.loads(Path(self.score.latency_file).read_text(encoding="utf-8"))
            float(found["answer_s"]["p95"] or 0)  # null: too many requests were lost
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError.one(
                "score.latency_file",
                self.score.latency_file,
                f"no latency.json can be read there ({error!r})",
                "make one: finetune score work/.../bundle recipe=... --vllm --latency; or score.latency_file=null",
            ) from error
        return dict(found)


_FORMED: Mapping[str, Mapping[str, str]] = {"tasks": {}, "preferences": {"rejected": "{rejected}"}}
_TEMPLATES = ("prompt", "messages", "answer", "answer_json", "chosen", "rejected")


def _formed(uses: Mapping[str, Any], formed: Container[str], more: Mapping[str, str]) -> dict[str, Any]:
    return {
        name: {**use, "messages": "messages", **more}
        if isinstance(use, Mapping) and use.get("source") in formed and not any(use.get(key) for key in _TEMPLATES)
        else use
        for name, use in uses.items()
    }


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped recipe as others may see it: no folder of this machine, no account name."""
    found = {key: value for key, value in recipe.items() if key not in ("work", "data_root")}
    found["model"] = {**recipe["model"], "path": None}
    found["sources"] = {name: _without_folder(source) for name, source in recipe["sources"].items()}
    if recipe.get("score", {}).get("latency_file"):
        found["score"] = {**recipe["score"], "latency_file": Path(recipe["score"]["latency_file"]).name}
    if "handoff" in recipe:
        texts = {name: Path(text).name for name, text in recipe["handoff"].get("licence_files", {}).items()}
        found["handoff"] = {**recipe["handoff"], "signing_key": None, "licence_files": texts}
    if "tracking" in recipe:
        found["tracking"] = {**recipe["tracking"], "entity": None}
    return found


def _without_folder(source: Mapping[str, Any]) -> dict[str, Any]:
    path = source.get("path")
    return {**source, "path": Path(path).name if path and Path(path).is_absolute() else path}

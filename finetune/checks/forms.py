"""What the rows of sources with a form were recognised as; reads one row of each."""

from collections.abc import Iterator, Mapping

from finetune.config import Recipe
from finetune.config.data import Form
from finetune.errors import RecipeError

_SAID: Mapping[Form, str] = {
    "messages": "conversations of OpenAI messages",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca instructions",
    "prompt": "prompts with completions",
    "preference": "preferences, chosen and rejected",
}


def recognised(recipe: Recipe) -> Iterator[str]:
    """A sentence for each source with a form: what its first row is, or the first that is not rejected where
    prepare.bad_input says reject. Raises RecipeError where that is not certain."""
    if not any(source.form for source in recipe.sources.values()):
        return
    # Readers take a tenth of the second that a plan has.
    from finetune.corpus.finding import find_files_of
    from finetune.corpus.forms import recognise
    from finetune.corpus.read import BadInput, pieces, rows

    for name, source in recipe.sources.items():
        if source.form is None or source.path is None:
            continue
        for file in find_files_of(name, source, recipe.documents, []):
            bad: list[BadInput] = []
            part = pieces(file, source, name)[0]
            first = next(rows(part, source, name, bad), None)
            if bad and recipe.prepare.bad_input == "raise":
                raise RecipeError([bad[0].problem])
            if first is not None:
                unformed = rows(part, source.model_copy(update={"form": None}), name, [])
                plain = next(row for row in unformed if row["_line"] == first["_line"])
                form = next(recognise(plain)) if source.form == "auto" else source.form
                yield f"sources.{name}: {_SAID[form]} (recognised at {file.name}:{first['_line']})"
                break

"""Static checks of a model directory or a bundle, for whoever receives it: no torch, no transformers, headers only.

A server starts on most defective checkpoints and answers wrongly without a word, so each known kind is looked for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from finetune import signing
from finetune.errors import Problem
from finetune.findings import Finding, finding, printable
from finetune.shards import Tensor
from finetune.verify import bundle, model, reading
from finetune.verify.weights import EMBEDDING, HEAD

Say = Callable[[str], None]


def verify(directory: Path, *, deep: bool = False, key: Path | None = None, say: Say = print) -> Sequence[Problem]:
    """Everything that is wrong with a model directory, or with a bundle (which holds `model/`); empty: nothing found.

    `deep` also reads every byte, once: hashes, and NaN or infinity. `key`, the public key that the receiver trusts,
    asks for the signature too, and implies `deep`. Raises RecipeError where `key` is no such key.
    """
    findings, notes = examine(directory, deep=deep, key=key, say=say)
    for note in notes:
        say(f"verify: {printable(note)}")
    return findings


def examine(directory: Path, *, deep: bool, key: Path | None, say: Say) -> tuple[list[Finding], list[str]]:
    """Findings; and notes: what was not checked, and what the checks do not prove."""
    if not directory.is_dir():
        fix = "give a model directory or a bundle"
        return [finding("no-folder", directory, None, "there is no such folder", fix)], []
    trusted = None if key is None else signing.load_public(key)
    is_bundle = (directory / "model").is_dir()
    findings: list[Finding] = list(bundle.check(directory)) if is_bundle else []
    notes: list[str] = []
    tensors: list[dict[str, Tensor]] = []
    checked = [(folder, model.check(folder)) for folder in (bundle.models(directory) if is_bundle else [directory])]
    for _, made in checked:
        findings += made.findings
        notes += (note for note in made.notes if note not in notes)
        tensors.append(made.tensors)
    if is_bundle and (directory / "adapter").is_dir():
        tensors.append(bundle.check_adapter(directory / "adapter", findings))
    digests: dict[str, str] = {}
    if deep or trusted is not None:
        files = {
            str(path.relative_to(directory)): path for path in sorted(directory.rglob("*"))
            if path.is_file() and not (is_bundle and path.is_symlink())  # a bundle's links are findings, not ways out
        }  # fmt: skip
        by_file = {path: found for group in tensors for path, found in model.by_file(group).items()}
        digests, wrong = reading.read(files, by_file, say)
        findings += wrong
        findings += (
            finding("tied-head-differs", f"{folder / 'config.json'}: tie_word_embeddings", True,
                    "the head differs from the embedding, and readers disagree which of them counts",
                    "set tie_word_embeddings to false")
            for folder, made in checked
            if made.tied and {HEAD, EMBEDDING} <= made.tensors.keys()
            and not reading.same(made.tensors[HEAD], made.tensors[EMBEDDING])
        )  # fmt: skip
        findings += bundle.compare(directory, digests) if is_bundle else ()
    else:
        notes.append("headers and texts only: add --deep to read every byte")
    unsigned, said = signing.examine(directory, trusted, digests)
    return [*findings, *unsigned], [*notes, *said]

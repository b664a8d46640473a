"""What could be learned from documents: headings of their sections, and questions that passages answer or do not."""

from typing import Any

from pydantic import TypeAdapter

from finetune.config.build import Built
from finetune.config.prepare import Split
from finetune.corpus import builders
from finetune.corpus.build import Item, fill
from finetune.corpus.split import side_of
from finetune.draft.folder import LINE, Found
from finetune.draft.tasks import LEAST, Drafted, enough

_NOT_IN_TEXT = {False: "Not in the text", True: "文中未提及"}
# Short enough for small models: a question with its passages is about 200 tokens.
_CHARS = {False: (600, 300, 200), True: (200, 150, 100)}


def of_documents(found: Found, chinese: bool) -> Drafted:
    """The tasks whose builders make enough rows of the documents; else they are running text."""
    group = "{_file}" if len({row["_file"] for row in found.rows}) >= 2 * LEAST else LINE
    items = [Item(found.name, fill(found.id, row), fill(group, row), row) for row in found.rows]
    headed = "heading" in found.columns
    clause, passage, answer = _CHARS[chinese]
    name = found.name
    heading = {"builder": "heading", "source": name, "max_chars": clause}
    question: dict[str, Any] = {
        "builder": "grounded_question", "source": name, "ask": ["heading", "definition"] if headed else ["definition"],
        "passages": 2, "passage_chars": passage, "answer_chars": answer, "not_in_text": _NOT_IN_TEXT[chinese],
    }  # fmt: skip
    build, tasks, why = {}, {}, []
    if headed and _suffices(f"{name}_headings", heading, items):
        build[f"{name}_headings"] = heading
        tasks[name] = _heading(f"{name}_headings", chinese)
        why.append("the heading of a section")
    question |= {} if headed else {"heading": None}
    if _suffices(f"{name}_questions", question, items):
        build[f"{name}_questions"] = question
        tasks[f"{name}_questions"] = _question(f"{name}_questions", chinese)
        why.append("questions with passages")
    return Drafted(found, found.id, group, tasks, ", ".join(why) or "running text", build)


def _suffices(name: str, spec: dict[str, Any], items: list[Item]) -> bool:
    built: Any = TypeAdapter(Built).validate_python(spec)
    made = [
        row.group
        for document in builders.documents(built, items)
        for row in builders.build_rows(
            name, built, document, side_of=lambda item: side_of(item.group, 0, Split()), seed=0, rejects=[]
        )
    ]
    return enough(made)


def _heading(source: str, chinese: bool) -> dict[str, Any]:
    return {
        "source": source, "title": "段落到标题" if chinese else "Section to heading",
        "prompt": "{clause}\n标题：" if chinese else "{clause}\nHeading:", "answer": "{answer}", "metric": "rouge_l",
        "max_new_tokens": 32,
    }  # fmt: skip


def _question(source: str, chinese: bool) -> dict[str, Any]:
    asked = "只根据以上段落回答，没有答案就说：" if chinese else "Answer from these passages, or say: "
    phrase = _NOT_IN_TEXT[chinese]
    return {
        "source": source, "title": "据文回答" if chinese else "Question with passages",
        "prompt": f"{{passages}}\n\n{{question}}\n{asked}{phrase}", "answer": "{answer}", "metric": "abstention",
        "metric_options": {"phrases": [phrase], "otherwise": "rouge_l"}, "max_new_tokens": 64,
    }  # fmt: skip

"""Built sources through the whole of PREPARE."""

import json
import random
import re
import string

import pytest
from corpus.builders.test_teacher import teaching

from finetune.corpus import prepare
from finetune.errors import RecipeError

WORDS = "pump valve seller buyer council notice permit licence vessel cargo grant record teacher pupil harbour".split()  # noqa: SIM905
LETTERS = string.ascii_lowercase


def chapters(documents: int, sections: int) -> dict[str, str]:
    """Markdown files of sections, each with a definition, a duty and a reference that no other has."""
    files = {}
    for document in range(documents):
        parts = []
        for section in range(sections):
            word, other = WORDS[(document + section) % 15], WORDS[(document * 7 + section * 3) % 15]
            code = f"{word}{document}x{section}"
            draw = random.Random(f"{document}/{section}")
            said, also = (" ".join("".join(draw.choices(LETTERS, k=6)) for _ in range(8)) for _ in range(2))
            parts.append(
                f"# Section {section}. Rules on {code}\n\n“{code}” means a {other} of {said}.\n\n"
                f"The {code} shall {also} in {section + 2} days.\n\n"
                f"Section {(section + 1) % sections} of this Act holds as well for {code}.\n"
            )
        files[f"acts/act{document}.md"] = "\n".join(parts)
    return files


def task(**changes):
    given = {"title": "T", "source": "qa", "prompt": "{passages}\n\n{question}", "answer": "{answer}",
             "metric": "rouge_l", "train_rows": 400, "max_new_tokens": 40}  # fmt: skip
    return given | changes


@pytest.fixture
def acts(corpus):
    for name, text in chapters(18, 5).items():
        corpus.write(name, text)
    corpus.config["sources"]["acts"] = {
        "path": "acts/*.md", "cut": {"by": "heading"}, "id": "{_file}:{_line}", "group": "{_file}"
    }  # fmt: skip
    corpus.config["build"] = {
        "qa": {"source": "acts", "builder": "grounded_question", "passages": 3, "absent_share": 0.25},
        "cited": {"source": "acts", "builder": "citation"},
        "unused": {"source": "acts", "builder": "heading"},
    }
    phrases = {"metric": "abstention", "metric_options": {"phrases": ["Not in the text"], "otherwise": "rouge_l"}}
    cited = {"passages": {f"[{n}]": f"{{passage_{n}}}" for n in (1, 2, 3)}, "metric": "citation", "source": "cited",
             "prompt": "{passages}\n\nWho says so? {statement}"}  # fmt: skip
    corpus.config["tasks"] |= {"qa": task(**phrases), "cited": task(**cited)}
    corpus.config["sft"] = {"max_length": 2048}
    return corpus


def test_built_rows_are_marked_counted_and_the_same_for_two_workers(acts, monkeypatch) -> None:
    made = acts.prepare()
    rows = {side: made.lines(f"{side}.jsonl") for side in ("train", "valid", "test")}
    built = [row for found in rows.values() for row in found if row["task"] != "action"]
    assert {row["builder"] for row in built} == {"grounded_question", "citation"}
    assert all(re.fullmatch(r"acts/act\d+\.md:\d+ text\[\d+:\d+\]", row["span"]) for row in built)
    assert not any("builder" in row or "span" in row for found in rows.values() for row in found if row not in built)
    told = {side: {code for row in found for code in re.findall(r"[a-z]+(\d+)x\d", json.dumps(row["messages"]))}
            for side, found in rows.items()}  # fmt: skip
    assert sum(map(len, told.values())) == len(set().union(*told.values())) == 18, "a passage of another side"
    entries = {entry["source"]: entry for entry in made.ledger if entry["step"] == "build"}
    assert set(entries) == {"qa", "cited"}, "what no task uses is not built"
    for entry in entries.values():
        assert entry["rows_in"] == entry["rows_out"] + sum(entry["dropped"].values())
        assert entry["documents"] == 18
    assert made.facts["built"]["qa"] == {
        "builder": "grounded_question", "source": "acts", "rows": entries["qa"]["rows_out"], "documents": 18
    }  # fmt: skip
    assert any(row["messages"][-1]["content"] == "Not in the text" for row in rows["test"])
    monkeypatch.setattr(prepare, "_SMALL", -1)
    assert made.files() == acts.prepare(workers=2).files()


def test_a_column_that_nobody_gives_is_asked_of_the_source(acts) -> None:
    acts.config["tasks"]["qa"]["prompt"] = "{pasages} {question}"
    with pytest.raises(RecipeError, match="pasages"):
        acts.prepare()


def test_a_column_of_the_source_may_stand_in_the_prompt(acts) -> None:
    acts.config["tasks"]["qa"]["prompt"] = "Of {path}: {passages} {question}"
    told = [row["messages"][0]["content"] for row in acts.prepare().lines("train.jsonl") if row["task"] == "qa"]
    assert all(text.startswith("Of Section ") for text in told)
    assert told


def test_running_text_of_a_built_test_row_is_not_trained_on(acts) -> None:
    acts.config["text"] = [{"source": "acts"}]
    made = acts.prepare()
    tested = {row["group"] for row in made.lines("test.jsonl") if row["task"] == "qa"}
    dropped = [entry["dropped"] for entry in made.ledger if entry["source"] == "text/acts" and entry["step"] == "text"]
    assert sum(reasons["other side of the split"] for reasons in dropped) == 5 * len(tested)


def test_a_teacher_sees_no_personal_data_and_its_rows_are_marked(acts) -> None:
    for number in range(18):
        acts.write(
            f"acts/act{number}.md",
            f"# Office {number}\n\nWrite to clerk{number}@example.org, token ghp_{'Ab1' * 12}, about case {number} of "
            f"{' '.join(random.Random(number).choices(WORDS, k=8))}.\n",
        )
    reply = json.dumps({"question": "To whom?", "answer": "[EMAIL_1]", "quote": "Write to [EMAIL_1]"})
    with teaching({"Write": reply}) as server:
        acts.config["build"] = {"taught": {
            "source": "acts", "builder": "teacher", "endpoint": f"{server.url}#wise", "send_documents": True,
        }}  # fmt: skip
        del acts.config["tasks"]["cited"]
        acts.config["tasks"]["qa"] = task(source="taught", prompt="{text} {question}")
        made = acts.prepare()
        sent = json.dumps(server.asked)
        assert len(server.asked) == 18
        assert acts.prepare().files() == made.files()
        assert len(server.asked) == 18, "what was replied is kept beside the results"
    assert "[EMAIL_1]" in sent
    assert "example.org" not in sent
    assert "ghp_" not in sent
    rows = [row for side in ("train", "valid", "test") for row in made.lines(f"{side}.jsonl") if row["task"] == "qa"]
    assert {row["builder"] for row in rows} == {"teacher:wise"}
    assert made.facts["built"]["taught"]["builder"] == "teacher:wise"


def test_what_a_teacher_makes_up_goes_through_the_steps_that_its_text_went_through(acts) -> None:
    """A reply may hold a control token, a secret, an address: nothing of the text was like that."""
    for number in range(18):
        words = " ".join(random.Random(number).choices(WORDS, k=12))
        acts.write(f"acts/act{number}.md", f"# Office {number}\n\nCase {number} at ann@example.org: {words}.\n")

    def reply(answer: str) -> str:
        return json.dumps({"question": "Who?", "answer": answer, "quote": "at"})

    replies = {
        "Case 1 ": reply("so <|im_end|> it is"), "Case 2 ": reply("ssn 078-05-1120"),
        "Case": reply("[EMAIL_1] or bob@clinic.example, password = Tr0ub4dor&3x"),
    }  # fmt: skip
    with teaching(replies) as server:
        acts.config["build"] = {"taught": {
            "source": "acts", "builder": "teacher", "endpoint": f"{server.url}#wise", "send_documents": True,
            "checks": [],
        }}  # fmt: skip
        del acts.config["tasks"]["cited"]
        acts.config["tasks"]["qa"] = task(source="taught", prompt="{text} {question}")
        acts.config["prepare"]["redact"] = {"ssn": "drop_row"}
        made = acts.prepare()
    told = b"".join(made.files().values())
    assert [value for value in (b"bob@", b"Tr0ub", b"078-05") if value in told] == []
    rows = [row for side in ("train", "valid", "test") for row in made.lines(f"{side}.jsonl") if row["task"] == "qa"]
    assert {row["messages"][-1]["content"] for row in rows} == {"[EMAIL_1] or [EMAIL_2], password = [SECRET_1]"}
    (entry,) = [entry for entry in made.ledger if entry["step"] == "build"]
    assert entry["dropped"] == {"control token in text": 1, "personal data": 1}
    assert entry["rows_in"] == entry["rows_out"] + 2 == 18

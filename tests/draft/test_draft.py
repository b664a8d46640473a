"""`finetune init`: a folder of mixed documents becomes a recipe without a line of Python, and that recipe a bundle."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finetune.checks import check
from finetune.config import Recipe, load
from finetune.config.data import placeholders
from finetune.corpus.build import fill
from finetune.corpus.finding import find_documents
from finetune.draft import recipe as drafting
from finetune.draft.folder import _encoding, look
from finetune.errors import RecipeError
from scripts.domain_data.documents import write_pdf
from tests.draft.made import mixed

ROOT = Path(__file__).resolve().parents[2]
LAWS = [
    "甲方应当在收到货物后十日内付款，逾期支付违约", "本合同自双方签字之日起生效，一式两份", "乙方不得将合同转让给他人",
]  # fmt: skip


def drafted(folder: Path, name: str = "ours") -> Recipe:
    assert drafting.run(folder, name, folder.parent / "mine") == 0
    words = [f"recipe={name}", "model=smollm2_135m", "machine=cpu", f"work={folder.parent / 'work'}"]
    recipe = load(words, config_dir=folder.parent / "mine")
    assert check(recipe) == []
    return recipe


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_a_folder_of_mixed_files_becomes_a_recipe_that_passes_its_checks(tmp_path: Path, capsys: Any) -> None:
    recipe = drafted(mixed(tmp_path / "docs"))
    cut = {name: source.cut.by for name, source in recipe.sources.items()}
    assert [cut[name] for name in ("docx", "html", "pdf")] == ["heading", "heading", "page"]
    assert recipe.main_task == "orders"
    assert recipe.tasks["orders"].answer_json == {"failure_mode": "{failure_mode}", "action": "{action}"}
    assert recipe.tasks["docx"].source == "docx_headings"
    assert recipe.build["html_questions"].builder == "grounded_question"
    assert "pdf" in [use.source for use in recipe.text]
    told = capsys.readouterr().out
    assert "1 .jpg (no reader)" in told
    assert "1 .xlsx (no reader)" in told
    assert "finetune prepare recipe=ours --config-dir" in told


def test_a_drafted_recipe_names_no_folder_of_this_machine_and_means_the_same_documents_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data_root and the general text stood in it as absolute paths: it ran where it was drafted and nowhere else."""
    digests = []
    for place in (tmp_path / "here", tmp_path / "some" / "where" / "else"):
        jsonl(place / "docs", [{"question": f"What is {i}?", "answer": f"{i}"} for i in range(90)])
        monkeypatch.chdir(place)
        if not digests:
            assert drafting.run(Path("docs"), "ours", Path("mine")) == 0
        else:
            (place / "mine").mkdir()
            (place / "mine" / "ours.yaml").write_text((tmp_path / "here/mine/ours.yaml").read_text())
        recipe = load(["recipe=ours", "model=smollm2_135m", "machine=cpu"], config_dir=Path("mine"))
        assert check(recipe) == []
        found = find_documents(recipe.sources, recipe.documents)
        assert set(found.facts["sources"]["speeches"]) == {"toolkit:data/general/speeches.jsonl"}
        digests.append(found.digest)
    assert digests[0] == digests[1]
    assert not re.search(r"[:\s\"]/", (tmp_path / "here/mine/ours.yaml").read_text())


def test_the_folder_in_which_one_types_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`finetune init .` drafted a recipe whose check said that work/ lies among the documents."""
    monkeypatch.chdir(mixed(tmp_path / "docs"))
    for folder in (".", ".."):
        with pytest.raises(RecipeError, match=r"cd .* && finetune init "):
            drafting.run(Path(folder), "ours", Path("mine"))


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "docs")
    drafted(folder)
    before = (tmp_path / "mine" / "ours.yaml").read_text()
    with pytest.raises(RecipeError, match="is not overwritten"):
        drafting.run(folder, "ours", tmp_path / "mine")
    assert (tmp_path / "mine" / "ours.yaml").read_text() == before
    with pytest.raises(RecipeError, match="is a recipe of the toolkit"):
        drafting.run(folder, "legal", tmp_path / "mine")
    with pytest.raises(RecipeError, match="small letters"):
        drafting.run(folder, "Ours!", tmp_path / "mine")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (lambda i: {"instruction": f"Explain part {i}", "input": "", "output": f"It is {i}"}, "{instruction}\n{input}"),
        (lambda i: {"question": f"What is {i}?", "answer": f"{i}"}, "{question}"),
        (lambda i: {"text": f"the pump {i} leaks at its seal", "kind": ["leak", "noise"][i % 2]}, "{text}\nkind:"),
        (lambda i: {"body": f"{LAWS[i % 3]}，第{i}条", "类别": ["付款", "生效", "转让"][i % 3]}, "{body}\n类别:"),
    ],
)
def test_tables_of_known_forms_become_tasks(tmp_path: Path, row: Any, wanted: str) -> None:
    recipe = drafted(jsonl(tmp_path / "docs", [row(i) for i in range(90)]))
    assert recipe.tasks["rows"].prompt == wanted


def test_conversations_and_preferences_are_recognised(tmp_path: Path) -> None:
    talks = [
        {"messages": [{"role": "user", "content": f"Q{i}?"}, {"role": "assistant", "content": f"A{i}"}]}
        for i in range(60)
    ]
    folder = jsonl(tmp_path / "docs", talks)
    liked = [{"prompt": f"P{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    (folder / "liked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in liked))
    recipe = drafted(folder)
    assert recipe.tasks["rows"].messages == "messages"
    assert recipe.preferences["liked"].rejected == "{rejected}"
    assert recipe.stages == ("sft", "dpo")


def test_chinese_documents_make_a_chinese_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "文件"
    folder.mkdir()
    titles = ["价款支付", "协议效力", "权利让与"]
    parts = [f"# 第{i}条 {titles[i % 3]}\n\n{LAWS[i % 3]}，适用于第{i}类货物的交付与验收。" for i in range(60)]
    (folder / "合同.md").write_text("\n\n".join(parts), encoding="utf-8")
    recipe = drafted(folder)
    assert recipe.language == "zh"
    assert recipe.tasks["md"].prompt == "{clause}\n标题："


@pytest.mark.parametrize("written", ["\t", ";", "|"])
def test_a_table_with_other_signs_than_commas_is_left_out_with_what_to_do(tmp_path: Path, written: str) -> None:
    """Excel writes semicolons where a comma is a decimal sign: each line became running text of one column."""
    folder = jsonl(tmp_path / "docs", [{"question": f"What is {i}?", "answer": f"{i}"} for i in range(90)])
    rows = "".join(f"{i}{written}pump {i} leaks{written}leak\n" for i in range(90))
    (folder / "orders.csv").write_text(f"id{written}text{written}kind\n{rows}")
    found = look(folder)
    assert [one.name for one in found.sources] == ["rows"]
    (problem,) = found.problems
    assert (problem.path, problem.fix[:19]) == ("orders.csv", "save it with commas")


def test_a_table_called_after_a_person_makes_no_source_of_that_name(tmp_path: Path) -> None:
    folder = jsonl(tmp_path / "docs", [{"question": f"What is {i}?", "answer": f"{i}"} for i in range(90)])
    for name in ("ann.lee@clinic.example.csv", "078-05-1120.csv"):
        (folder / name).write_text(f"{name[:3]},text\n" + "".join(f"{i},pump {i}\n" for i in range(30)))
    assert [one.name for one in look(folder).sources] == ["csv", "csv_2", "rows"]


def test_a_table_that_chinese_excel_wrote_is_read_and_western_ones_are_not_taken_for_chinese(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    rows = "".join(f"{i},{LAWS[i % 3]}第{i}条,{'付款生效转让'[2 * (i % 3):][:2]}\n" for i in range(90))
    (folder / "合同.csv").write_bytes(f"编号,正文,类别\n{rows}".encode("gb18030"))
    recipe = drafted(folder)
    (source,) = [one for one in recipe.sources.values() if one.path == "合同.csv"]
    assert source.encoding == "gb18030"
    for text in ("Die Prüfung der Größe über Maß wäre nötig. ", "L'été, où déjà la façade paraît fêlée, çà et là. "):
        (tmp_path / "latin.txt").write_bytes((text * 40).encode("latin-1"))
        assert _encoding(tmp_path / "latin.txt") == "utf-8"
    (folder / "more.csv").write_text("编号,正文,类别\n1,甲方,付款\n", encoding="utf-8")
    assert [problem.path for problem in look(folder).problems] == ["合同.csv"]


def test_documents_whose_parts_share_a_place_are_named_by_more(tmp_path: Path) -> None:
    """Several clauses begin on one page of a PDF: file and page alone would name two rows alike."""
    said = "The borrower pays this instalment on the first day of the month."
    blocks = [block for number in range(1, 31) for block in (("h3", f"Article {number}"), ("p", said))]
    write_pdf(tmp_path / "docs" / "loan.pdf", "Loan", blocks)
    (found,) = look(tmp_path / "docs").sources
    assert found.cut == "clause"
    assert len({fill(found.id, row) for row in found.rows}) == len(found.rows)


def test_a_folder_without_anything_to_learn_is_answered_with_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(RecipeError, match="no document that can be read"):
        drafting.run(tmp_path / "docs", None, tmp_path / "mine")
    (tmp_path / "docs" / "a.txt").write_text("one line\n")
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(RecipeError, match="add a table with questions"):
        drafting.run(tmp_path / "docs", None, tmp_path / "mine")
    with pytest.raises(RecipeError, match="is not there"):
        drafting.run(tmp_path / "nowhere", None, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip
@given(st.lists(WORDS, min_size=1, max_size=5, unique_by=str.strip), st.lists(WORDS, min_size=1, max_size=6))
def test_whatever_a_table_calls_its_columns_the_draft_is_yaml_whose_templates_name_them(
    tmp_path: Path, header: list[str], words: list[str]
) -> None:
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for i in range(30):
        others = [words[(i + n) % len(words)] for n in range(1, len(header))]
        writer.writerow([f"{words[0]} is what stands in row {i}", *others])
    (folder / "table.csv").write_text(buffer.getvalue(), encoding="utf-8")
    try:
        found = look(folder)
    except RecipeError:
        return
    sources = drafting.draft(found)
    if not any(one.tasks for one in sources):
        return
    made = yaml.safe_load(drafting.write("any", found, sources))
    (task,) = made["tasks"].values()
    answers = [task["answer"]] if "answer" in task else list(task["answer_json"].values())
    named = {name for template in (task["prompt"], *answers) for name in placeholders(template)}
    assert named <= {column.strip() for column in header}


@pytest.mark.slow
def test_from_an_empty_recipe_folder_to_a_verified_bundle_without_a_line_of_python(
    tmp_path: Path, tiny_qwen3: Path
) -> None:
    """`finetune init`, `train.py`, `finetune verify`, each typed as in docs/recipes.md; no network."""
    person = "john.smith@example.com"
    letter = mixed(tmp_path / "docs") / "letters" / f"{person}.txt"
    letter.parent.mkdir()
    letter.write_text("Dear Sir,\n\nthe pump of line four leaks again at its seal.\n")
    command = [sys.executable, "-m", "finetune.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}

    def typed(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    typed(*command, "init", "docs", "--name", "ours")
    names = yaml.safe_load((tmp_path / "mine" / "ours.yaml").read_text())["tasks"]
    assert {"orders", "docx", "html", "html_questions"} <= set(names)
    few = [f"tasks.{name}.{key}" for name in names for key in ("test_rows=4", "max_new_tokens=4")]
    accepted = ["handoff.accepted_by=tests", "handoff.reason='random weights'"]
    typed(
        "unshare", "--map-root-user", "--net", sys.executable, str(ROOT / "finetune" / "train.py"), "recipe=ours",
        "--config-dir", "mine", "model=tiny_qwen3", "machine=cpu", "machine.threads=1", "sft.max_steps=2",
        "score.general_tokens=512", "score.parity_prompts=2", *few, *accepted,
        f"sources.txt.path=letters/{letter.name}",
    )  # fmt: skip
    bundle = tmp_path / "work" / "ours" / "bundle"
    assert json.loads((bundle / "datasheet.json").read_text())["rows"]["train"] > 100
    typed(*command, "verify", str(bundle), "--deep")
    given_on = [*bundle.rglob("*"), *bundle.parent.glob("wandb/**/*"), *bundle.parent.glob("datasheet.*")]
    assert any(path.suffix == ".wandb" for path in given_on)
    holding = [path for path in given_on if path.is_file() and person.encode() in path.read_bytes()]
    assert holding == [], "a person stood in the name of a file"

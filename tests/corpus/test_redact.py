"""Recognisers hold their checksums, placeholders are stable, and ordinary numbers stay."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.prepare import Redact
from finetune.corpus.personal.checksums import cn_id_holds, iban_holds, luhn_holds
from finetune.corpus.redact import find_personal, redact_key, redact_row, redact_texts

REDACT = Redact()
KINDS = REDACT.kinds


def redacted(text: str) -> str:
    return redact_texts([text], KINDS)[0][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Jo.Doe+x@mail.example.co.uk.", "write to [EMAIL_1]."),
        ("联系邮箱zhang@example.cn谢谢", "联系邮箱[EMAIL_1]谢谢"),
        ("card 4111 1111 1111 1111, exp", "card [CARD_1], exp"),
        ("card 5500-0000-0000-0004", "card [CARD_1]"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [IBAN_1] please"),
        ("GB82WEST12345698765432", "[IBAN_1]"),
        ("SSN 078-05-1120.", "SSN [SSN_1]."),
        ("身份证号11010519491231002X，", "身份证号[CN_ID_1]，"),
        ("手机13812345678。", "手机[CN_MOBILE_1]。"),
        ("+86 138 1234 5678", "[CN_MOBILE_1]"),
        ("call (212) 555-2368 now", "call [PHONE_1] now"),
        ("call +44 20 7946 0958 now", "call [PHONE_1] now"),
        ("host 192.168.10.254:80", "host [IP_1]:80"),
        ("host 2001:db8:85a3::8a2e:370:7334 up", "host [IP_1] up"),
        ("key AKIAIOSFODNN7EXAMPLE", "key [SECRET_1]"),
        ("token ghp_" + "a1B2" * 9, "token [SECRET_1]"),
        ("password = hunter2hunter2;", "password = [SECRET_1];"),
        ("postgres://admin:s3cr3t@db/x", "postgres://admin:[SECRET_1]@db/x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nab==\n-----END RSA PRIVATE KEY-----\nrest", "[SECRET_1]\nrest"),
    ],
)
def test_personal_data_is_replaced(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",  # fails Luhn
        "DE89 3704 0044 0532 0130 01",  # fails modulo 97
        "110105194912310021",  # fails its check character
        "000-12-3456 and 666-12-3456 and 900-12-3456 and 123-00-4567",  # never issued
        "section 34.668.14.2.1 and version 1.2.3.4.5",  # no IP address has five parts
        "order 20120305 at 12:30:45, 5485 rows, 1,234,567.89 EUR",
        "article 370(1)(d), 34 CFR 668.14(b)(22)",
        "2012-03-05 2012/03/05 05.03.2012",
        "300.400.500.600",
        "the @ sign; a@b; user@localhost",
        "13,812,345,678 and 0.13812345678",
        "password: [SECRET_1]",
        "a://b:[SECRET_1]@c.de/",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert redacted(text) == text


def test_one_value_has_one_placeholder_in_all_columns_of_a_row() -> None:
    row = {"a": "x@example.org y@example.org", "b": "again x@example.org", "_file": "x@example.org.csv", "_line": "1"}
    changed, counts = redact_row(row, REDACT)
    assert changed == {**row, "a": "[EMAIL_1] [EMAIL_2]", "b": "again [EMAIL_1]"}
    assert counts == {"email": 3}


def test_new_numbers_start_above_placeholders_that_are_there_already() -> None:
    assert redacted("[EMAIL_3] and x@example.org") == "[EMAIL_3] and [EMAIL_4]"


def test_a_kind_that_is_not_asked_for_stays() -> None:
    assert redact_texts(["x@example.org 192.168.1.1"], ["ip"])[0] == ["x@example.org [IP_1]"]


def test_keys_stay_apart_without_the_value() -> None:
    keys = [redact_key(f"case {name}@example.org", REDACT, 0) for name in ("ann", "bob", "ann")]
    assert keys[0] == keys[2] != keys[1]
    assert "@" not in "".join(keys)


PIECES = st.sampled_from(
    [
        "x@example.org",
        "4111111111111111",
        "192.168.0.1",
        "078-05-1120",
        "[EMAIL_1]",
        "+1 212 555 2368",
        "password: hunter2x",
        "account number 20839-4471",
        "call 467 3395",
        "[CARD_123456789012]",
        "身份证号",
        "320311770706001",
        "\\u8eab%40",
        "phone ",
        " ",
        ", ",
        "の",
        ".",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redacted(text)
    assert redacted(once) == once
    assert not find_personal(once, KINDS)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=5), min_size=1, max_size=8))
def test_equal_values_and_only_they_share_a_placeholder(names: list[str]) -> None:
    texts, counts = redact_texts([f"{name}@example.org" for name in names], KINDS)
    assert counts["email"] == len(names)
    assert len(set(texts)) == len(set(names))
    assert [texts.index(text) for text in texts] == [names.index(name) for name in names]


@given(st.text(string.digits, min_size=12, max_size=18))
def test_exactly_one_check_digit_completes_a_card_number(digits: str) -> None:
    assert sum(luhn_holds(digits + check) for check in string.digits) == 1


@given(st.integers(0, 10**18 - 1))
def test_one_wrong_digit_breaks_an_iban(account: int) -> None:
    body = f"{account:018d}"
    check = 98 - int(f"{body}131400") % 97
    iban = f"DE{check:02d}{body}"
    assert iban_holds(iban)
    assert not iban_holds(iban[:-1] + str((int(iban[-1]) + 1) % 10))


def test_a_chinese_id_needs_a_real_date() -> None:
    assert cn_id_holds("11010519491231002X")
    assert not any(cn_id_holds(f"1101051949133100{i:02d}"[:17] + check) for i in range(20) for check in "0123456789X")

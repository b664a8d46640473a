"""From the bytes of a source file to lines: decompressed, decoded, bounded. What is wrong with a line goes with it.

No line, row or document is held beyond `LONGEST` bytes; a compressed file may expand to `EXPANSION` times its size.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from finetune import wheels
from finetune.config.data import Source
from finetune.errors import Problem

LONGEST = 1 << 26
"""Bytes of one line, one row of a table, one JSON value: 64 MiB. More is no row of text."""
LINE_COST = 64
"""Bytes that a line counts beside its text where many are held: a million empty lines are no small document."""
EXPANSION = 250
"""A compressed file may hold so many times its own bytes (JSON lines reach 50, logs 150), and 64 MiB in any case."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAGIC = {
    b"%PDF": "pdf",
    b"PK\x03\x04": "a zip or an Office document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "Parquet",
}
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b]")
_CONTROL_BYTES = bytes(code for code in range(0x1C) if code not in range(0x09, 0x0E))
_BY_BYTE = re.compile(r"utf_8|ascii|gb(18030|k|2312)|big5(hkscs)?|cp\d+|iso8859_\d+|latin_1|shift_jis|euc_\w+|koi8_\w")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class BadInput:
    """One row or file that cannot be read: `problem` for a run that stops there, the rest for one that goes on.

    `reason` is one of a few words that a ledger can count; `line` is 0 where the whole file is meant. Neither holds
    anything of the row's text.
    """

    file: str
    line: int
    reason: str
    problem: Problem


def bad(file: str, line: int, reason: str, rule: str, fix: str, value: str | None = None) -> BadInput:
    where = f"{file}:{line}" if line else file
    return BadInput(file, line, reason, Problem(where, value, rule, fix))


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `name` is what rows and messages call it: relative to data_root, or the wheel's member.

    `marks` are places (byte offset, number of the line that begins there) at which a file of lines may be divided.
    """

    name: str
    path: Path | None
    wheel: wheels.Wheel | None = None
    marks: tuple[tuple[int, int], ...] = ()

    def open(self) -> BinaryIO:
        """The bytes as they lie there. Raises OSError, RecipeError (the wheel) or KeyError (its member)."""
        if self.path is not None:
            return self.path.open("rb")
        assert self.wheel is not None
        return io.BytesIO(wheels.member(self.wheel, self.name))


class Line(NamedTuple):
    """`text` is without its line end; it is empty where `wrong` says why it could not be read."""

    number: int
    text: str
    wrong: BadInput | None


def splits_at_bytes(encoding: str) -> bool:
    r"""Whether the byte \n is a line end and nothing else in this encoding (not so in UTF-16 or ISO-2022)."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        return False
    return _BY_BYTE.fullmatch(name.replace("-", "_")) is not None


class _Expanded(io.RawIOBase):
    """A decompressed stream that ends with OSError when it grows beyond EXPANSION times what was read for it."""

    def __init__(self, stream: BinaryIO, compressed: int) -> None:
        self._stream, self._left = stream, max(LONGEST, compressed * EXPANSION)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(0, f"it expands to more than {EXPANSION} times its size")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def expanded(stream: BinaryIO) -> BinaryIO:
    """The stream, or what gzip or zstandard hide in it; seekable only in the first case."""
    start = stream.read(4)
    stream.seek(0, io.SEEK_END)
    size = stream.tell()
    stream.seek(0)
    if start.startswith(GZIP):
        inner = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    elif start == ZSTD:
        import pyarrow as pa

        inner = cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"))
    else:
        return stream
    return cast(BinaryIO, io.BufferedReader(_Expanded(inner, size), _CHUNK))


def read_lines(
    file: str, stream: BinaryIO, source: Source, source_name: str, *, number: int = 1, size: int | None = None
) -> Iterator[Line]:
    r"""Lines (ended by \n, \r\n or \r) from where the stream stands on, at most `size` bytes of it.

    A line that is not in the source's encoding, holds a control character or is too long is there without its text.
    A stream that breaks off ends with a line that says so.
    """
    try:
        if splits_at_bytes(source.encoding):
            yield from _byte_lines(file, stream, source, source_name, number, size)
        else:
            yield from _text_lines(file, stream, source, source_name)
    except _BROKEN as error:
        yield Line(0, "", _unreadable(file, error))


def read_text(file: str, stream: BinaryIO, source: Source, source_name: str) -> Iterator[Line]:
    """The decoded text in chunks of any length; ends at the first byte that is wrong, with a chunk that says so."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    number, first = 1, True
    try:
        while raw := stream.read(_CHUNK):
            if first and (wrong := _foreign(file, raw, source_name)) is not None:
                yield Line(1, "", wrong)
                return
            text = decoder.decode(raw.removeprefix(codecs.BOM_UTF8) if first else raw)
            yield Line(number, text, None)
            number, first = number + text.count("\n"), False
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        start = error.object[: error.start]
        wrong = _wrong_encoding(file, number + start.count(b"\n"), error.object, error, source, source_name)
        yield Line(number, "", wrong)
    except _BROKEN as error:
        yield Line(0, "", _unreadable(file, error))


def _unreadable(file: str, error: Exception) -> BadInput:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    rule = f"this file cannot be read to its end ({said})"
    return bad(file, 0, "unreadable file", rule, "check its permissions, or pack it again")


_BROKEN = (OSError, EOFError, zlib.error)
"""What a file that breaks off raises: pyarrow's errors of a codec are OSErrors."""


def _byte_lines(
    file: str, stream: BinaryIO, source: Source, source_name: str, number: int, size: int | None
) -> Iterator[Line]:
    left = size if size is not None else _ENDLESS
    while raw := stream.read(min(left, _CHUNK)):
        rest = b"" if raw.endswith(b"\n") else stream.readline(min(left - len(raw), LONGEST))
        left -= len(raw) + len(rest)
        raw += rest
        if number == 1:
            if (wrong := _foreign(file, raw, source_name)) is not None:
                yield Line(1, "", wrong)
                return
            raw = raw.removeprefix(codecs.BOM_UTF8)
        open_end = b""
        if len(rest) >= LONGEST and not rest.endswith(b"\n"):
            raw, open_end = raw[: raw.rfind(b"\n") + 1], raw[raw.rfind(b"\n") + 1 :]
        for line in _whole_lines(file, raw, source, source_name, number):
            yield line
            number = line.number + 1
        if open_end:
            yield Line(number, "", _too_long(file, number))
            number += 1 + open_end.count(b"\r")
            while open_end and not open_end.endswith(b"\n"):
                open_end = stream.readline(min(left, _CHUNK))
                left -= len(open_end)
                number += open_end.count(b"\r") - open_end.count(b"\r\n")


_ENDLESS = 1 << 62


def _whole_lines(file: str, raw: bytes, source: Source, source_name: str, number: int) -> Iterator[Line]:
    """The lines of a block of bytes: decoded at once where all of them can be."""
    if len(raw.translate(None, _CONTROL_BYTES)) == len(raw):
        try:
            text = raw.decode(source.encoding)
        except UnicodeDecodeError:
            pass
        else:
            if "\r" in text:
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            yield from (Line(*line, None) for line in enumerate(text.removesuffix("\n").split("\n"), start=number))
            return
    parts = _LINE_END.split(raw)
    for at, part in enumerate(parts if parts[-1] else parts[:-1], start=number):
        yield _decoded(file, at, part, source, source_name)


_LINE_END = re.compile(rb"\r\n|\r|\n")


def _decoded(file: str, number: int, raw: bytes, source: Source, source_name: str) -> Line:
    try:
        text = raw.decode(source.encoding)
    except UnicodeDecodeError as error:
        return Line(number, "", _wrong_encoding(file, number, raw, error, source, source_name))
    if len(raw.translate(None, _CONTROL_BYTES)) != len(raw):
        return Line(number, "", _control(file, number, text))
    return Line(number, text, None)


def _text_lines(file: str, stream: BinaryIO, source: Source, source_name: str) -> Iterator[Line]:
    number = 1
    text = io.TextIOWrapper(stream, source.encoding, errors="strict", newline=None)
    try:
        while line := text.readline(LONGEST):
            if len(line) == LONGEST and not line.endswith("\n"):
                while line and not line.endswith("\n"):
                    line = text.readline(LONGEST)
                yield Line(number, "", _too_long(file, number))
            elif _CONTROL.search(line):
                yield Line(number, "", _control(file, number, line))
            else:
                yield Line(number, line.removesuffix("\n"), None)
            number += 1
    except UnicodeError as error:
        # Where a unit of several bytes is broken nothing says where the next begins: the rest is not guessed at.
        rule = f"this file is not {source.encoding} text from here on ({type(error).__name__})"
        yield Line(number, "", bad(file, number, "wrong encoding", rule, f"correct sources.{source_name}.encoding"))


def _foreign(file: str, raw: bytes, source_name: str) -> BadInput | None:
    what = next((what for magic, what in _MAGIC.items() if raw.startswith(magic)), None)
    if what is None:
        return None
    fix = f"set sources.{source_name}.format, unpack it, or leave it out with a glob"
    return bad(file, 0, "not text", f"this file is not text, it is {what}", fix)


def _too_long(file: str, number: int) -> BadInput:
    rule = f"this line is longer than {LONGEST >> 20} MiB"
    return bad(file, number, "line too long", rule, "check that the file has line ends, or take this line out")


def _control(file: str, number: int, text: str) -> BadInput:
    found = _CONTROL.search(text)
    value = f"U+{ord(found.group()):04X}" if found else None
    rule = "this file is not text, it holds a control character"
    return bad(
        file, number, "control character", rule, "leave it out with a glob, or export it as text", value
    )


def _wrong_encoding(
    file: str, number: int, raw: bytes, error: UnicodeDecodeError, source: Source, source_name: str
) -> BadInput:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        guess = "utf-16"
    else:
        guess = next((name for name in ("utf-8", "gb18030", "cp1252") if _decodes(raw, name)), "latin-1")
    fix = f"set sources.{source_name}.encoding to what it was written in ({guess} would decode), or save it as UTF-8"
    rule = f"this file is not {source.encoding} text"
    return bad(file, number, "wrong encoding", rule, fix, f"byte 0x{raw[error.start]:02x}")


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def scan(stream: BinaryIO, step: int) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """The bytes in chunks and, about every `step` bytes, a mark: offset behind a line end, number of the line there.

    Made for whoever reads the bytes anyway, to hash them. Lines are counted as `read_lines` counts them.
    """
    offset, line, target, carriage = 0, 1, step, False
    while chunk := stream.read(_CHUNK):
        line -= carriage and chunk.startswith(b"\n")
        marks, done = [], 0
        while target <= offset + len(chunk) and (end := chunk.find(b"\n", max(target - offset - 1, 0)) + 1):
            line += _line_ends(chunk[done:end])
            done, target = end, offset + end + step
            marks.append((offset + end, line))
        line += _line_ends(chunk[done:])
        carriage = chunk.endswith(b"\r")
        offset += len(chunk)
        yield chunk, marks


def _line_ends(data: bytes) -> int:
    lone = data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else 0
    return data.count(b"\n") + lone

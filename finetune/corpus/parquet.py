"""Reader of Parquet, row group by row group; nested columns become text as they do in JSON lines."""

import base64
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.corpus.streams import LONGEST, BadInput, bad
from finetune.corpus.tables import Found, TwiceError, flatten

_BATCH = 256
_ADVICE = "write the file again, or take it out"


def count_groups(stream: BinaryIO) -> list[int]:
    """The rows of each row group. Raises what pyarrow raises: OSError or ValueError."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(stream).metadata
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def read_parquet(name: str, stream: BinaryIO, groups: tuple[int, int] | None, line: int) -> Iterator[Found]:
    """Rows of the groups from the first to before the last (None: all); `_line` is the row's number in the file.

    Bytes that are UTF-8 are text, others base64; a float that is no number is nothing; dates are ISO 8601.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = line
    try:
        file = pq.ParquetFile(stream, pre_buffer=False, thrift_string_size_limit=1 << 26)
        if twice := sorted(column for column, times in Counter(file.schema_arrow.names).items() if times > 1):
            if line == 1:  # the file's other groups would say the same
                yield from (_taken(name, 0, column) for column in twice)
            return
        chosen = list(range(*(groups or (0, file.metadata.num_row_groups))))
        for batch in file.iter_batches(_BATCH, row_groups=chosen, use_threads=False):
            if batch.nbytes > 2 * LONGEST:
                rule = f"{_BATCH} rows of this Parquet hold more than {2 * LONGEST >> 20} MiB"
                yield bad(name, number, "line too long", rule, "leave the column with the large values out")
                return
            for item in batch.to_pylist():
                yield _row(name, number, item)
                number += 1
    # pyarrow's own errors; UnicodeDecodeError is a ValueError, a damaged dictionary page raises IndexError
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        rule = f"this Parquet cannot be read ({type(error).__name__})"
        yield bad(name, number if number > line else 0, "unreadable file", rule, _ADVICE)


def _row(name: str, number: int, item: dict[str, Any]) -> Found:
    try:
        columns = flatten({key: _plain(value) for key, value in item.items()})
    except TwiceError as twice:
        return _taken(name, number, twice.column)
    return {**columns, "_file": name, "_line": str(number)}


def _taken(name: str, number: int, column: str) -> BadInput:
    rule = "two values of a row would have this column name, or it is our own name"
    return bad(name, number, "column twice", rule, "rename one of the columns", column)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)



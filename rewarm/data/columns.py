"""Parquet files and Arrow files (as `datasets` saves them) to parts."""

import contextlib
import re
import resource
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rewarm.config.errors import UserError
from rewarm.data.documents import MAX_RECORD_BYTES, Part
from rewarm.data.sources import Source

_ROWS = 64
_MEMORY_BYTES = 512 << 20


def column_parts(path: Path, source: Source, index: int, text_key: str, part_bytes: int) -> Iterator[Part]:
    """Cuts the text column of a local columnar file into parts.

    Args:
        path (Path): The file, or its local copy.
        source (Source): What it is and how to name it.
        index (int): The source's index, which the parts carry.
        text_key (str): The column with the text.
        part_bytes (int): Size of a part in bytes of text.

    Yields:
        Part: In the order of the rows.

    Raises:
        UserError: If the file cannot be read, or has no such column of text.
    """
    import pyarrow as pa

    rows: list[bytes | None] = []
    first, count, size = 1, 0, 0
    try:
        with _bounded_memory():
            for column in _columns(path, source, text_key, part_bytes):
                for value in _values(column):
                    rows.append(
                        value if value is None or len(value) <= MAX_RECORD_BYTES else value[: MAX_RECORD_BYTES + 1]
                    )
                    size += len(rows[-1] or b'')
                    if size >= part_bytes:
                        yield Part(source=index, index=count, kind=source.kind, first_line=first, rows=rows)
                        first, count, rows, size = first + len(rows), count + 1, [], 0
    except MemoryError:
        raise UserError(
            f'{source.path}: a batch of its rows unpacks to more than {_MEMORY_BYTES >> 20} MiB. Write it again with '
            'smaller row groups, or leave out the rows that are so long'
        ) from None
    except pa.ArrowException as error:
        raise UserError(f'{source.path}: cannot be read as {source.kind} ({error})') from error
    if rows:
        yield Part(source=index, index=count, kind=source.kind, first_line=first, rows=rows)


@contextlib.contextmanager
def _bounded_memory() -> Generator[None]:
    """Lets this process take so much more memory, and no more: a page of a few bytes can unpack to gigabytes."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve a gigabyte at once, which counts
    now = int(re.findall(r'VmData:\s+(\d+) kB', Path('/proc/self/status').read_text())[0]) << 10
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = now + _MEMORY_BYTES
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _values(column: Any) -> Iterator[bytes | None]:
    """The column's texts as bytes, for invalid UTF-8 is a reject and not the end of the conversion."""
    import pyarrow as pa

    for start in range(0, len(column), _ROWS):  # a few at a time: three copies of a whole batch would be held
        yield from column.slice(start, _ROWS).cast(pa.large_binary()).to_pylist()


def _columns(path: Path, source: Source, text_key: str, part_bytes: int) -> Iterator[Any]:
    """The text column, in batches that are small beside the memory bound."""
    with path.open('rb') as raw:
        if source.kind == 'parquet':
            yield from _parquet_columns(raw, source, text_key, part_bytes)
        else:
            yield from _arrow_columns(raw, source, text_key)


def _parquet_columns(raw: BinaryIO, source: Source, text_key: str, part_bytes: int) -> Iterator[Any]:
    from pyarrow import parquet

    file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
    _check_column(file.schema_arrow, source, text_key)
    uncompressed = sum(file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups))
    rows = max(1, min(1024, part_bytes * max(1, file.metadata.num_rows) // max(1, uncompressed)))
    for batch in file.iter_batches(rows, columns=[text_key], use_threads=False):
        yield batch.column(0)


def _arrow_columns(raw: BinaryIO, source: Source, text_key: str) -> Iterator[Any]:
    from pyarrow import ipc

    is_file = raw.read(6) == b'ARROW1'  # `datasets` writes streams; other programs write files
    raw.seek(0)
    if is_file:
        file = ipc.open_file(raw)
        _check_column(file.schema, source, text_key)
        for number in range(file.num_record_batches):
            yield file.get_batch(number).column(text_key)
    else:
        stream = ipc.open_stream(raw)
        _check_column(stream.schema, source, text_key)
        for batch in stream:
            yield batch.column(text_key)


def _check_column(schema: Any, source: Source, text_key: str) -> None:
    import pyarrow as pa

    if text_key not in schema.names:
        names = ', '.join(schema.names)
        raise UserError(f'{source.path}: no column {text_key!r}; it has {names}. Name one with --text-key')
    kind = schema.field(text_key).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f'{source.path}: column {text_key!r} is {kind}, not text')

"""Parquet files and Arrow files (as `datasets` saves them) to parts."""

import contextlib
import re
import resource
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rewarm.config.errors import UserError
from rewarm.data.documents import MAX_RECORD_BYTES, Part, text_keys
from rewarm.data.sources import Source

_ROWS = 64
_MEMORY_BYTES = 512 << 20


def column_parts(path: Path, source: Source, index: int, text_key: str, part_bytes: int) -> Iterator[Part]:
    """Cuts the text column of a local columnar file into parts.

    Args:
        path (Path): The file, or its local copy.
        source (Source): What it is and how to name it.
        index (int): The source's index, which the parts carry.
        text_key (str): The column with the text, or several with commas between; the first that is there is taken.
        part_bytes (int): Size of a part in bytes of text.

    Yields:
        Part: In the order of the rows.

    Raises:
        UserError: If the file cannot be read, or has no such column of text.
    """
    rows: list[bytes | None] = []
    first, count, size = 1, 0, 0
    with _in_words(source):
        with _bounded_memory():
            for column in _columns(path, source, text_keys(text_key), part_bytes):
                for value in _values(column):
                    rows.append(
                        value if value is None or len(value) <= MAX_RECORD_BYTES else value[: MAX_RECORD_BYTES + 1]
                    )
                    size += len(rows[-1] or b'')
                    if size >= part_bytes:
                        yield Part(source=index, index=count, kind=source.kind, first_line=first, rows=rows)
                        first, count, rows, size = first + len(rows), count + 1, [], 0
    if rows:
        yield Part(source=index, index=count, kind=source.kind, first_line=first, rows=rows)


def read_columns(file: BinaryIO, source: Source) -> dict[str, Any]:
    """Reads the schema of a columnar file.

    Args:
        file (BinaryIO): The file, open for reading anywhere.
        source (Source): What it is and how to name it.

    Returns:
        dict[str, Any]: Each column's type, of pyarrow, by its name.

    Raises:
        UserError: If it cannot be read.
    """
    with _in_words(source), _bounded_memory():
        if source.kind == 'parquet':
            from pyarrow import parquet

            schema = parquet.read_schema(file)
        else:
            schema = _open_arrow(file).schema
        return {field.name: field.type for field in schema}


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds texts."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def column_problem(columns: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Why the text is in none of a file's columns; None if it is in the first of the keys that is there.

    Args:
        columns (Mapping[str, Any]): Types by name, of `read_columns`.
        keys (Sequence[str]): From `rewarm.data.documents.text_keys`.

    Returns:
        str | None: In words, with the columns that there are.
    """
    name = next((key for key in keys if key in columns), None)
    if name is None:
        wanted = ' or '.join(map(repr, keys[1:] or keys))
        return f'no column {wanted}; it has {", ".join(columns) or "none"}'
    if not is_text(columns[name]):
        return f'column {name!r} is {columns[name]}, not text; it has {", ".join(columns)}'
    return None


@contextlib.contextmanager
def _in_words(source: Source) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except MemoryError:
        raise UserError(
            f'{source.path}: a batch of its rows unpacks to more than {_MEMORY_BYTES >> 20} MiB. Write it again with '
            'smaller row groups, or leave out the rows that are so long'
        ) from None
    except pa.ArrowException as error:
        raise UserError(f'{source.path}: cannot be read as {source.kind} ({error})') from error


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


def _columns(path: Path, source: Source, keys: Sequence[str], part_bytes: int) -> Iterator[Any]:
    """The text column, in batches that are small beside the memory bound."""
    with path.open('rb') as raw:
        if source.kind == 'parquet':
            yield from _parquet_columns(raw, source, keys, part_bytes)
        else:
            yield from _arrow_columns(raw, source, keys)


def _parquet_columns(raw: BinaryIO, source: Source, keys: Sequence[str], part_bytes: int) -> Iterator[Any]:
    from pyarrow import parquet

    file = parquet.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
    name = _find_column(file.schema_arrow, source, keys)
    uncompressed = sum(file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups))
    rows = max(1, min(1024, part_bytes * max(1, file.metadata.num_rows) // max(1, uncompressed)))
    for batch in file.iter_batches(rows, columns=[name], use_threads=False):
        yield batch.column(0)


def _arrow_columns(raw: BinaryIO, source: Source, keys: Sequence[str]) -> Iterator[Any]:
    reader = _open_arrow(raw)
    name = _find_column(reader.schema, source, keys)
    if hasattr(reader, 'num_record_batches'):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(name)
    else:
        for batch in reader:
            yield batch.column(name)


def _open_arrow(raw: BinaryIO) -> Any:
    from pyarrow import ipc

    is_file = raw.read(6) == b'ARROW1'  # `datasets` writes streams; other programs write files
    raw.seek(0)
    return ipc.open_file(raw) if is_file else ipc.open_stream(raw)


def _find_column(schema: Any, source: Source, keys: Sequence[str]) -> str:
    columns = {field.name: field.type for field in schema}
    if problem := column_problem(columns, keys):
        raise UserError(f'{source.path}: {problem}. Name one with --text-key')
    return next(key for key in keys if key in columns)

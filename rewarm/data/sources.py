"""Which files a conversion reads, in which order: files, folders, Hugging Face datasets on disk; local or s3://."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from rewarm.buckets.bucket import is_bucket, open_bucket
from rewarm.config.errors import UserError
from rewarm.formats.conversion import SavedDataset
from rewarm.formats.files import read_bytes
from rewarm.formats.strict_json import parse_record

Kind = Literal['jsonl', 'txt', 'parquet', 'arrow']
Compression = Literal['gzip', 'zstd']

ACCEPTED = (
    'jsonl, jsonl.gz, jsonl.zst, parquet, txt (also .gz, .zst), or a folder that `datasets` saved with save_to_disk'
)
"""What the converter reads, in words."""

_KINDS: dict[str, Kind] = {
    '.jsonl': 'jsonl',
    '.ndjson': 'jsonl',
    '.txt': 'txt',
    '.parquet': 'parquet',
    '.arrow': 'arrow',
}
_COMPRESSIONS: dict[str, Compression] = {'.gz': 'gzip', '.zst': 'zstd', '.zstd': 'zstd'}


@dataclass(frozen=True)
class Source:
    """One input file."""

    name: str
    """What the card and the list of rejects call it: the path below the argument that named it."""
    path: str
    """Local path or ``s3://`` URL."""
    kind: Kind
    """What is in it."""
    compression: Compression | None
    """How it is compressed as a whole; parquet compresses inside."""
    bytes: int
    """Size of the file as it lies there."""
    version: str
    """Modification time in ns, or ETag: a file that changes under an unfinished conversion is noticed by it."""

    def open(self) -> BinaryIO:
        """Opens the file's bytes for reading anywhere."""
        if is_bucket(self.path):
            return open_bucket(self.path).open(self.path, self.bytes, self.version)
        return open(self.path, 'rb')


@dataclass(frozen=True)
class _Entry:
    """A file found below an argument."""

    inside: str  # path below the argument, '' if the argument is the file
    path: str
    bytes: int
    version: str


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Lists the files to read: arguments in the order given, a folder's files in the order of their paths.

    Args:
        arguments (Sequence[str]): Files and folders, local or ``s3://``.

    Returns:
        list[Source]: At least one file.

    Raises:
        UserError: If an argument is not there, holds nothing readable, or is a dataset with several splits.
    """
    sources: list[Source] = []
    for argument in arguments:
        entries = _list_bucket(argument) if is_bucket(argument) else _list_folder(argument)
        base = PurePosixPath(argument.removeprefix('s3://').rstrip('/')).name or Path(argument).resolve().name
        found = [
            Source(f'{base}/{entry.inside}' if entry.inside else base, entry.path, *shape, entry.bytes, entry.version)
            for entry in _order_of_datasets(argument, entries)
            if (shape := _shape(entry.inside or base, named_by_user=not entry.inside)) is not None
        ]
        if not found:
            raise UserError(f'{argument}: no file here that can be read. Readable: {ACCEPTED}')
        sources.extend(found)
    if not sources:
        raise UserError('no source was given: name at least one file or folder')
    return _with_unique_names(sources)


def _shape(name: str, *, named_by_user: bool) -> tuple[Kind, Compression | None] | None:
    path = PurePosixPath(name.lower())
    compression = _COMPRESSIONS.get(path.suffix)
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    # A .json file holds lines by the Hub's custom when it is compressed; a bare one in a folder is mostly metadata.
    kind = 'jsonl' if suffix == '.json' and (compression or named_by_user) else _KINDS.get(suffix)
    if kind is None or (compression and kind in ('parquet', 'arrow')):
        if named_by_user:
            raise UserError(f'{name}: unknown kind of file. Readable: {ACCEPTED}')
        return None
    return kind, compression


def _list_folder(argument: str) -> list[_Entry]:
    top = Path(argument)
    if not top.exists():
        raise UserError(f'{argument}: no such file or folder')
    paths = [top] if top.is_file() else sorted((p for p in top.rglob('*') if p.is_file()), key=lambda p: p.parts)
    entries: list[_Entry] = []
    for path in paths:
        inside = '' if path == top else path.relative_to(top).as_posix()
        if any('\ud800' <= letter <= '\udfff' for letter in str(path)):
            raise UserError(f'{str(path)!a}: the name is no valid UTF-8, so the card cannot give it; rename it')
        if not any(part.startswith('.') for part in PurePosixPath(inside).parts):
            stat = path.stat()
            entries.append(_Entry(inside, str(path), stat.st_size, str(stat.st_mtime_ns)))
    return entries


def _list_bucket(argument: str) -> list[_Entry]:
    url = argument.rstrip('/')
    listed = sorted(open_bucket(url).list(url), key=lambda item: PurePosixPath(item[0]).parts)
    if not listed:
        raise UserError(f'{argument}: no object here')
    return [_Entry(inside, f'{url}/{inside}' if inside else url, size, etag) for inside, size, etag in listed]


def _order_of_datasets(argument: str, entries: list[_Entry]) -> list[_Entry]:
    """Puts the files of each saved dataset in the order that its ``state.json`` gives; the rest stays as it is."""
    folders = {PurePosixPath(e.inside).parent: e for e in entries if PurePosixPath(e.inside).name == 'state.json'}
    if any(PurePosixPath(e.inside).name == 'dataset_dict.json' for e in entries) and len(folders) > 1:
        splits = ', '.join(sorted(str(folder) for folder in folders))
        raise UserError(f'{argument}: a dataset with several splits ({splits}); name those to convert, such as '
                        f'{argument.rstrip("/")}/{min(folders)}')  # fmt: skip
    rank: dict[str, int] = {}
    for folder, entry in folders.items():
        for place, file in enumerate(_read_state(entry).data_files):
            rank[str(folder / file.filename)] = place
    # Arrow files in a dataset's folder that its state does not list are another dataset's cache.
    kept = [
        e
        for e in entries
        if e.inside in rank or not (e.inside.endswith('.arrow') and PurePosixPath(e.inside).parent in folders)
    ]
    return sorted(kept, key=lambda e: (PurePosixPath(e.inside).parent.parts, rank.get(e.inside, 0))) if rank else kept


def _read_state(entry: _Entry) -> SavedDataset:
    data = open_bucket(entry.path).read(entry.path) if is_bucket(entry.path) else read_bytes(entry.path)
    return parse_record(SavedDataset, data or b'', entry.path)


def _with_unique_names(sources: list[Source]) -> list[Source]:
    counts = Counter(source.name for source in sources)
    repeated = {name for name, count in counts.items() if count > 1}
    return [
        Source(s.path, s.path, s.kind, s.compression, s.bytes, s.version) if s.name in repeated else s for s in sources
    ]

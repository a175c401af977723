"""What an unfinished conversion writes about itself, and what `datasets` writes beside the files it saves."""

from typing import Annotated

from pydantic import Field

from rewarm.formats.strict_json import Record

__all__ = ['Failure', 'Identity', 'Ledger', 'SavedCounts', 'SavedDataset', 'SavedProgress']

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
FileName = Annotated[str, Field(pattern=r'^[\w.-]*$', max_length=255)]


class SavedCounts(Record):
    """What went into one split: see `rewarm.data.staging.Counts`."""

    documents: Count
    tokens: Count
    bytes: Count
    shards: Count


class SavedProgress(Record):
    """How far a conversion is: see `rewarm.data.staging.Progress`."""

    source: Count
    part: Count
    empty: Count
    rejects: Count
    counts: dict[str, SavedCounts]


class Ledger(Record):
    """``progress.json`` of a staging folder: the point from which a conversion goes on."""

    progress: SavedProgress
    logs: dict[str, Count]
    """Bytes of each list that count."""
    pending: dict[str, FileName]
    """By split, the file with tokens that fill no shard yet; empty for none."""


class Identity(Record):
    """``identity.json`` of a staging folder: what the unfinished conversion is of."""

    settings: dict[str, str | int | float | bool | None]
    sources: tuple[tuple[str, str, Count, str], ...]
    """Name, path, bytes and version of each file."""


class Failure(Record):
    """``failed.json`` of a staging folder: the conversion ended with something that the user has to mend."""

    reason: str
    """What was said."""


class SavedFile(Record):
    """A file of a dataset that `datasets` saved."""

    filename: str


class SavedDataset(Record):
    """``state.json`` of a dataset that `datasets` saved."""

    data_files: Annotated[tuple[SavedFile, ...], Field(alias='_data_files')] = ()
    """In the order of the rows."""

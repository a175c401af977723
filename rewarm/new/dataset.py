"""What a dataset says about itself: its training and validation part, the sequences in it, the tokenizer it was made with."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import PydanticCustomError

from rewarm.config.errors import UserError
from rewarm.config.paths import expand_path, is_url
from rewarm.formats.card import CARD_NAME, DatasetCard, read_card
from rewarm.formats.shards import INDEX_NAME, Index, read_index

__all__ = ['Dataset', 'Part', 'expanded', 'find_dataset']


@dataclass(frozen=True)
class Part:
    """One folder of shards."""

    place: str
    """As a run file names it: what was typed, with ``/train`` or ``/val`` behind it where that is the part."""
    samples: int
    seq_len: int | None
    """Tokens of a sample; None if neither card nor index say."""
    card: DatasetCard | None
    """None where another program made it, such as LLM Foundry."""


@dataclass(frozen=True)
class Dataset:
    """A training part and, where there is one beside it, a validation part."""

    train: Part
    val: Part | None = None


def find_dataset(place: str) -> Dataset:
    """Looks for shards: in OUT/train and OUT/val of ``rewarm convert --val-fraction``, else in the folder itself.

    Args:
        place (str): A folder, or a URL of an object store.

    Returns:
        Dataset: For ``X`` also with the validation set ``X-val`` beside it.

    Raises:
        UserError: If there is no dataset, or it cannot be read.
    """
    for train, val in ((f'{place}/train', f'{place}/val'), (place, _sibling(place))):
        if (found := _look(train)) is not None:
            return Dataset(found, _look(val))
    hint = 'make it with: rewarm convert TEXT... OUT'
    if not is_url(place) and not Path(expanded(place)).is_dir():
        raise UserError(f'{place}: there is no such folder. Name the one that `rewarm convert` wrote, or {hint}')
    raise UserError(
        f'{place}: no dataset, since it has no {INDEX_NAME}. Name the folder that `rewarm convert` wrote, or {hint}'
    )


def _sibling(place: str) -> str:
    return f'{place.removesuffix("train")}val' if place.endswith('/train') else f'{place}-val'


def _look(place: str) -> Part | None:
    if is_url(place):
        return _look_into_bucket(place)
    folder = Path(expanded(place))
    try:
        index = read_index(folder / INDEX_NAME)
    except FileNotFoundError:
        return None
    return _part(place, index, read_card(folder))


def _look_into_bucket(url: str) -> Part | None:
    from rewarm.buckets.bucket import open_bucket

    bucket = open_bucket(url)
    if (index := bucket.read(f'{url}/{INDEX_NAME}')) is None:
        return None
    with tempfile.TemporaryDirectory() as name:  # the readers of both read files
        folder = Path(name)
        (folder / INDEX_NAME).write_bytes(index)
        if (card := bucket.read(f'{url}/{CARD_NAME}')) is not None:
            (folder / CARD_NAME).write_bytes(card)
        return _part(url, read_index(folder / INDEX_NAME), read_card(folder))


def _part(place: str, index: Index, card: DatasetCard | None) -> Part:
    if not index.samples:
        raise UserError(f'{place}: the dataset holds no samples. Make it from more text')
    length = index.shards[0].encoding.length
    if card is not None:
        seq_len = card.seq_len
    elif length is not None:
        seq_len = length - 1 if length % 2 else length  # a block has one token more, LLM Foundry's samples do not
    else:
        seq_len = None
    return Part(place, index.samples, seq_len, card)


def expanded(place: str) -> str:
    """A path with ``~`` and ``$NAME`` put in, as a run file's are.

    Raises:
        UserError: If it is no path, or a name in it is not set.
    """
    try:
        return expand_path(place)
    except PydanticCustomError as error:
        raise UserError(f'{place!r:.100}: {error.message()}') from None

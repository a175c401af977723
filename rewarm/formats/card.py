"""The dataset card: what a folder of shards says about itself, and the hash that ties it to a tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rewarm.formats.strict_json import Record, read_file

__all__ = ['CARD_NAME', 'REJECTS_NAME', 'CardSource', 'DatasetCard', 'count_problems', 'read_card', 'read_part_cards']

CARD_NAME = 'dataset_card.json'
"""File name of the card, beside ``index.json``."""

REJECTS_NAME = 'rejects.jsonl'
"""File name of the list of records that could not be read, beside the card."""

LARGEST_BYTES = 256 << 20
"""Of a card: it names each file that the dataset was made from."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Size = Annotated[int, Field(ge=1, lt=1 << 32)]


class CardSource(Record):
    """One file the dataset was made from."""

    name: str
    """Path as given to the converter."""
    bytes: Count
    """Size of the file in bytes."""
    sha256: str
    """Hash of the file's bytes, in hex."""


class DatasetCard(Record):
    """Everything needed to decide whether a dataset fits a run."""

    version: int
    """Version of the card's format."""
    tokenizer_hash: str
    """``sha256:...`` of the tokenizer, as ``tokenizer_hash`` computes it."""
    vocab_size: Size
    """Number of ids the tokenizer has; every token is below it."""
    eod_id: Count
    """Id that ends each document."""
    seq_len: Size
    """Sequence length in tokens; a block holds one more."""
    dtype: Literal['uint16', 'uint32']
    """Type of a stored token."""
    documents: Count
    """Documents in the dataset."""
    tokens: Count
    """Tokens of all documents, the EOD of each included."""
    bytes: Count
    """UTF-8 bytes of the documents' text, for bits per byte."""
    samples: Count
    """Blocks of ``seq_len + 1`` tokens."""
    sources: tuple[CardSource, ...] = ()
    """The files it was made from."""
    split: str | None = None
    """Rule by which documents were split off for validation."""
    share_of_documents: float | None = None
    """Share of all documents that this side of a split holds."""
    share_of_tokens: float | None = None
    """Share of all tokens that it holds."""
    tokens_dropped: Count = 0
    """Tokens behind the last full block, at most ``seq_len``; they are in ``tokens`` and in no block."""
    documents_empty: Count = 0
    """Records of the sources, over all splits, whose text was empty; they are no documents."""
    rejects: Count = 0
    """Records of the sources, over all splits, that could not be read; listed in ``rejects.jsonl`` beside the card."""
    encoder: str | None = None
    """Library that made the tokens, in words."""
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """What was asked of the converter, as far as it changes the shards."""
    converter: str
    """Name and version of the program that wrote it."""


def read_card(folder: str | Path) -> DatasetCard | None:
    """Reads the card of a dataset in a local folder.

    Args:
        folder (str | Path): The folder with ``index.json`` in it.

    Returns:
        DatasetCard | None: The card, or None if the folder has none (LLM Foundry's shards do not).

    Raises:
        DamagedFile: If there is a card and it cannot be read.
    """
    try:
        return read_file(DatasetCard, Path(folder) / CARD_NAME, largest_bytes=LARGEST_BYTES)
    except FileNotFoundError:
        return None


def read_part_cards(folder: str | Path, names: Iterable[str]) -> list[DatasetCard]:
    """Reads the cards of datasets whose indexes were merged into one, which itself has none.

    Args:
        folder (str | Path): The folder with the merged ``index.json`` in it.
        names (Iterable[str]): Names of the files that the index lists, such as ``part0/shard.00000.mds``.

    Returns:
        list[DatasetCard]: Those that there are, in the order of their folders' names.

    Raises:
        DamagedFile: If one cannot be read.
    """
    parts = sorted({name.rpartition('/')[0] for name in names} - {''})
    return [card for part in parts if (card := read_card(Path(folder) / part)) is not None]


def count_problems(card: DatasetCard, samples: int) -> list[str]:
    """What does not fit together in the counts of a card and of the index beside it.

    Args:
        card (DatasetCard): The card.
        samples (int): Samples that the index counts.

    Returns:
        list[str]: Problems in words; empty if there are none.
    """
    problems: list[str] = []
    if samples != card.samples:
        problems.append(f'the index counts {samples} blocks, the card {card.samples}')
    if card.samples * card.seq_len + 1 + card.tokens_dropped != card.tokens:
        problems.append(
            f'the card counts {card.tokens} tokens, its blocks and dropped tokens make another number: '
            f'{card.samples} * {card.seq_len} + 1 + {card.tokens_dropped}'
        )
    return problems

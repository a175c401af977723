"""The dataset card: what a folder of shards says about itself, and the hash that ties it to a tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rewarm.config.errors import UserError

CARD_NAME = 'dataset_card.json'
"""File name of the card, beside ``index.json``."""


class _Card(BaseModel):
    # A newer converter may say more than this version reads.
    model_config = ConfigDict(frozen=True, strict=True, extra='ignore', use_attribute_docstrings=True)


class CardSource(_Card):
    """One file the dataset was made from."""

    name: str
    """Path as given to the converter."""
    bytes: int
    """Size of the file in bytes."""
    sha256: str
    """Hash of the file's bytes, in hex."""


class DatasetCard(_Card):
    """Everything needed to decide whether a dataset fits a run."""

    version: int
    """Version of the card's format."""
    tokenizer_hash: str
    """``sha256:...`` of the tokenizer, as ``tokenizer_hash`` computes it."""
    vocab_size: int
    """Number of ids the tokenizer has; every token is below it."""
    eod_id: int
    """Id that ends each document."""
    seq_len: int
    """Sequence length in tokens; a block holds one more."""
    dtype: Literal['uint16', 'uint32']
    """Type of a stored token."""
    documents: int
    """Documents in the dataset."""
    tokens: int
    """Tokens of all documents, the EOD of each included."""
    bytes: int
    """UTF-8 bytes of the documents' text, for bits per byte."""
    samples: int
    """Blocks of ``seq_len + 1`` tokens."""
    sources: tuple[CardSource, ...] = ()
    """The files it was made from."""
    split: str | None = None
    """Rule by which documents were split off for validation."""
    tokens_dropped: int = 0
    """Tokens behind the last full block, at most ``seq_len``; they are in ``tokens`` and in no block."""
    documents_empty: int = 0
    """Records of the sources, over all splits, whose text was empty; they are no documents."""
    rejects: int = 0
    """Records of the sources, over all splits, that could not be read; listed in ``rejects.jsonl`` beside the card."""
    encoder: str | None = None
    """Library that made the tokens, in words."""
    settings: dict[str, str | int | float | bool | None] = {}
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
        UserError: If there is a card and it cannot be read.
    """
    path = Path(folder) / CARD_NAME
    try:
        text = path.read_text(encoding='utf-8')
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: cannot be read ({error})') from None
    try:
        return DatasetCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(map(str, first['loc'])) or 'the file'
        raise UserError(
            f'{path}: not a dataset card: {where}: {first["msg"]}. Convert the data again, or remove the file'
        ) from None


def tokenizer_hash(path: str | Path) -> str:
    """Hashes a tokenizer by what it says, not by how its file is laid out.

    Args:
        path (str | Path): A ``tokenizer.json``.

    Returns:
        str: ``sha256:`` and 64 hex digits, of the file's JSON with sorted keys and no spaces.

    Raises:
        UserError: If the file is not there or is not JSON.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: not a readable tokenizer.json ({error})') from None
    canonical = json.dumps(content, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    return f'sha256:{hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()}'

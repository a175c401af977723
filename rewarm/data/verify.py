"""Is a dataset what its index and its card say? Hashes, counts, overlaps and the range of ids, without torch."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from rewarm.buckets.bucket import is_bucket
from rewarm.config.card import CARD_NAME, DatasetCard, read_card
from rewarm.config.errors import UserError
from rewarm.data.shards import INDEX_NAME


def verify_dataset(folder: str | Path) -> list[str]:
    """Checks a dataset, or the ``train`` and ``val`` of a split one.

    Args:
        folder (str | Path): A local folder with ``index.json``, or with folders that have one.

    Returns:
        list[str]: One line for each problem; empty if all is well.

    Raises:
        UserError: If there is no dataset here.
    """
    if is_bucket(str(folder)):
        raise UserError(f'{folder}: only local folders are verified; download it first')
    top = Path(folder)
    folders = [top] if (top / INDEX_NAME).is_file() else sorted(path.parent for path in top.glob(f'*/{INDEX_NAME}'))
    if not folders:
        raise UserError(f'{folder}: no {INDEX_NAME} here or one level below, so this is no dataset')
    return [problem for each in folders for problem in _problems(each)]


def _problems(folder: Path) -> Iterator[str]:
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding='utf-8'))
        entries: list[dict[str, Any]] = index['shards']
    except (ValueError, KeyError, TypeError) as error:
        yield f'{folder / INDEX_NAME}: not readable ({error!r})'
        return
    try:
        card = read_card(folder)
    except UserError as error:
        card = None
        yield str(error)
    else:
        if card is None:
            yield f'{folder / CARD_NAME}: missing; without it training cannot check the tokenizer'
    previous, ends = None, 0
    for entry in entries:
        raw = None
        try:
            raw = _raw_bytes(folder, entry)
            blocks = _blocks(raw, entry)
        except (_Problem, OSError, ValueError, KeyError, zstandard.ZstdError) as error:
            where = folder / str(entry.get('raw_data', {}).get('basename', 'a shard'))
            yield str(error) if isinstance(error, _Problem) else f'{where}: not readable ({error})'
            previous = None
            continue
        if blocks is None or card is None:
            continue
        name = folder / entry['raw_data']['basename']
        if blocks.shape[1] != card.seq_len + 1:
            yield f'{name}: blocks of {blocks.shape[1]} tokens, the card says {card.seq_len + 1}'
        if int(blocks.max()) >= card.vocab_size:
            yield f'{name}: holds id {int(blocks.max())}, the tokenizer has {card.vocab_size}'
        joined = blocks if previous is None else np.concatenate((previous, blocks))
        if not np.array_equal(joined[:-1, -1], joined[1:, 0]):
            yield f'{name}: a block does not begin with the last token of the block before'
        ends += int((blocks[:, 1:] == card.eod_id).sum())
        previous = blocks[-1:]
    if card is not None:
        yield from _count_problems(folder, card, sum(entry['samples'] for entry in entries), ends)


def _count_problems(folder: Path, card: DatasetCard, samples: int, ends: int) -> Iterator[str]:
    if samples != card.samples:
        yield f'{folder}: the index counts {samples} blocks, the card {card.samples}'
    if card.samples * card.seq_len + 1 + card.tokens_dropped != card.tokens:
        yield f'{folder}: the card counts {card.tokens} tokens, its blocks and dropped tokens make another number'
    if ends > card.documents:
        yield f'{folder}: {ends} documents end in the blocks, the card counts {card.documents}'


class _Problem(Exception):
    """What is wrong with a file, in words."""


def _raw_bytes(folder: Path, entry: dict[str, Any]) -> bytes:
    """The shard's bytes, checked as they lie there and as they are when decompressed."""
    raw_info, zip_info = entry['raw_data'], entry.get('zip_data')
    if zip_info and (folder / zip_info['basename']).exists():
        data = _checked(folder / zip_info['basename'], zip_info, (folder / zip_info['basename']).read_bytes())
        if not str(entry.get('compression')).startswith('zstd'):
            raise _Problem(f'{folder / zip_info["basename"]}: compressed with {entry.get("compression")}, not checked')
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_info['bytes'])
        return _checked(folder / raw_info['basename'], raw_info, raw)
    path = folder / raw_info['basename']
    if not path.exists():
        raise _Problem(f'{path}: missing')
    return _checked(path, raw_info, path.read_bytes())


def _checked(path: Path, info: dict[str, Any], data: bytes) -> bytes:
    if len(data) != info['bytes']:
        raise _Problem(f'{path}: {len(data)} bytes, the index says {info["bytes"]}')
    for name, expected in info['hashes'].items():
        if name in hashlib.algorithms_available and hashlib.new(name, data).hexdigest() != expected:
            raise _Problem(f'{path}: {name} differs from the index: the file is damaged or was replaced')
    return data


def _blocks(raw: bytes, entry: dict[str, Any]) -> NDArray[Any] | None:
    """The shard's blocks, ``(n, tokens)``; None for a format that is not ours."""
    count = int(np.frombuffer(raw, '<u4', 1)[0])
    if count != entry['samples']:
        raise _Problem(f'{entry["raw_data"]["basename"]}: holds {count} blocks, the index says {entry["samples"]}')
    kind, dtype, *shape = (entry['column_encodings'][0] + '::').split(':')
    if kind != 'ndarray' or dtype not in ('uint16', 'uint32') or not shape[0].isdecimal() or count == 0:
        return None
    begin = int(np.frombuffer(raw, '<u4', 1, 4)[0])
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder('<'), offset=begin).reshape(count, int(shape[0]))

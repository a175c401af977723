"""Is a dataset what its index and its card say? Hashes, counts, overlaps and the range of ids, without torch."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.card import CARD_NAME, REJECTS_NAME, DatasetCard, count_problems, read_card
from rewarm.formats.files import open_regular
from rewarm.formats.mds import problem_of_tokens, read_blocks
from rewarm.formats.packed import unpack
from rewarm.formats.shards import INDEX_NAME, Shard, ShardFile, problem_of_content, read_index

__all__ = ['foreign_datasets', 'verify_dataset']

_HELD_BYTES = 256 << 20  # of an unpacked shard; a larger one goes to a temporary file


def verify_dataset(folder: str | Path) -> list[str]:
    """Checks a dataset, or the ``train`` and ``val`` of a split one.

    Args:
        folder (str | Path): A local folder with ``index.json``, or with folders that have one.

    Returns:
        list[str]: One line for each problem; empty if all is well.

    Raises:
        UserError: If there is no dataset here.
    """
    return [problem for each in _folders(folder) for problem in _problems(each)]


def foreign_datasets(folder: str | Path) -> list[Path]:
    """Which of these datasets another program made: they have no card, so tokenizer and vocabulary are not known.

    Args:
        folder (str | Path): As for :func:`verify_dataset`.

    Returns:
        list[Path]: Folders with an index and without a card.

    Raises:
        UserError: If there is no dataset here.
    """
    return [each for each in _folders(folder) if not (each / CARD_NAME).exists()]


def _folders(folder: str | Path) -> list[Path]:
    if is_bucket(str(folder)):
        raise UserError(f'{folder}: only local folders are verified; download it first')
    top = Path(folder)
    if (top / INDEX_NAME).exists():
        return [top]
    folders = sorted(path.parent for path in top.glob(f'*/{INDEX_NAME}'))
    if not folders:
        raise UserError(f'{folder}: no {INDEX_NAME} here or one level below, so this is no dataset')
    return folders


def _problems(folder: Path) -> Iterator[str]:
    try:
        index = read_index(folder / INDEX_NAME)
    except (DamagedFile, FileNotFoundError) as error:
        yield str(error)
        return
    card = None
    try:
        card = read_card(folder)
    except DamagedFile as error:
        yield str(error)
    else:
        if card is None and (folder / REJECTS_NAME).exists():  # as beside each card of ours
            yield f'{folder / CARD_NAME}: missing; without it training cannot check the tokenizer'
    if not index.samples:
        yield f'{folder / INDEX_NAME}: the dataset holds no samples'
    previous, ends = None, 0
    for shard in index.shards:
        check = _ShardCheck(card, previous)
        try:
            with _raw_file(folder, shard) as raw:
                yield from check.problems(raw, folder / shard.raw_data.basename, shard)
        except DamagedFile as error:
            yield f'{error.where}: {error.what}'
            previous = None
            continue
        previous, ends = check.last, ends + check.ends
    if card is not None:
        yield from (f'{folder}: {problem}' for problem in count_problems(card, index.samples))
        if ends > card.documents:
            yield f'{folder}: {ends} documents end in the blocks, the card counts {card.documents}'


class _ShardCheck:
    """Goes through the blocks of one shard.

    Args:
        card (DatasetCard | None): The dataset's card.
        last (int | None): The token with which the shard before ends.
    """

    def __init__(self, card: DatasetCard | None, last: int | None) -> None:
        self._card, self.last, self.ends = card, last, 0

    def problems(self, raw: BinaryIO, where: Path, shard: Shard) -> Iterator[str]:
        """Yields each kind of problem once."""
        found: dict[str, str] = {}
        lengths: set[int] = set()
        for blocks in read_blocks(raw, shard.samples, shard.encoding, where):
            lengths.add(blocks.shape[1])
            if problem := problem_of_tokens(blocks, self._card.vocab_size if self._card else None):
                found.setdefault('ids', problem)
            if self._card is None:
                continue
            if blocks.shape[1] != self._card.seq_len + 1:
                found['length'] = f'blocks of {blocks.shape[1]} tokens, the card says {self._card.seq_len + 1}'
            before = blocks[:1, 0] if self.last is None else [self.last]
            if not np.array_equal(np.concatenate((before, blocks[:-1, -1])), blocks[:, 0]):
                found['overlap'] = 'a block does not begin with the last token of the block before'
            self.ends += int((blocks[:, 1:] == self._card.eod_id).sum())
            self.last = int(blocks[-1, -1])
        if len(lengths) > 1:
            found['lengths'] = f'samples of {min(lengths)} to {max(lengths)} tokens'
        yield from (f'{where}: {problem}' for problem in found.values())


@contextlib.contextmanager
def _raw_file(folder: Path, shard: Shard) -> Iterator[BinaryIO]:
    """The shard, not packed. All of its files that are there are checked: training takes the raw one first.

    Raises:
        DamagedFile: If one is not what the index says, or none is there.
    """
    raw_info, zip_info = shard.raw_data, shard.zip_data
    with contextlib.ExitStack() as stack:
        zipped = _open_checked(folder, zip_info, stack) if zip_info else None
        raw = _open_checked(folder, raw_info, stack)
        if zipped is not None and zip_info is not None:
            held = stack.enter_context(tempfile.SpooledTemporaryFile(_HELD_BYTES))
            unpack(zipped, cast('BinaryIO', held), raw_info.bytes, folder / zip_info.basename)
            if problem := problem_of_content(cast('BinaryIO', held), raw_info):
                raise DamagedFile(folder / zip_info.basename, what=f'unpacked, {problem}')
            raw = raw or cast('BinaryIO', held)
        if raw is None:
            raise DamagedFile(folder / raw_info.basename, what='missing')
        yield raw


def _open_checked(folder: Path, info: ShardFile, stack: contextlib.ExitStack) -> BinaryIO | None:
    try:
        file = stack.enter_context(open_regular(folder / info.basename))
    except FileNotFoundError:
        return None
    if problem := problem_of_content(file, info):
        raise DamagedFile(folder / info.basename, what=problem)
    file.seek(0)
    return file

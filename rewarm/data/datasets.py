"""Where a run's datasets are, and whether they fit the run: checked before the first batch, with the fix in words."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import numpy as np
from composer.utils import dist
from numpy.typing import NDArray
from streaming.base.format import Reader
from streaming.base.storage import CloudDownloader

from rewarm.config.data_cards import find_run_tokenizer
from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.schema import EvalSetConfig, RunConfig, StreamConfig
from rewarm.data.shard_files import make_readers
from rewarm.data.shard_folder import files_there, remove_half_fetched
from rewarm.formats.card import CARD_NAME, DatasetCard, count_problems, read_card, read_part_cards
from rewarm.formats.files import open_regular, private_folder
from rewarm.formats.shards import INDEX_NAME, Index, Shard, problem_of, read_index
from rewarm.formats.tokenizer_files import remembered_hash

__all__ = ['Dataset', 'open_datasets']

log = logging.getLogger(__name__)
T = TypeVar('T')

_ABSENT = {'403', '404', 'NoSuchBucket', 'NoSuchKey'}  # S3 says 403 of what is not there to those who may not list.


@dataclass(frozen=True, eq=False)
class Dataset:
    """A folder of shards that fits the run.

    Args:
        name (str): The stream's or evaluation set's name.
        folder (str): The local folder: where the shards are, or are cached.
        remote (str | None): Where missing shards come from; None if all are in the folder.
        readers (tuple[Reader, ...]): Streaming's readers of the shards.
        samples_per_shard (NDArray): Samples in each shard, int64, shape ``(shards,)``.
        shard_hashes (tuple[str, ...]): For each shard, a text that changes with its content.
        compressed (bool): Whether shards must be unpacked before they are read.
        tokens_per_sample (int | None): Length of a sample, or None if the index does not say.
        vocab_size (int): Ids that a token may have: those of the card's tokenizer, or of the model.
        card (DatasetCard | None): The card; other programs' shards have none.
    """

    name: str
    folder: str
    remote: str | None
    readers: tuple[Reader, ...]
    samples_per_shard: NDArray[np.int64]
    shard_hashes: tuple[str, ...]
    compressed: bool
    tokens_per_sample: int | None
    vocab_size: int
    card: DatasetCard | None


def open_datasets(sources: Sequence[StreamConfig | EvalSetConfig], config: RunConfig) -> list[Dataset]:
    """Finds datasets, fetches their index and card if need be, and checks that they fit. All ranks call it together.

    Args:
        sources (Sequence[StreamConfig | EvalSetConfig]): Streams of one stage, or evaluation sets.
        config (RunConfig): The run's settings.

    Returns:
        list[Dataset]: One for each source, in order.

    Raises:
        UserError: On every rank, if a dataset is missing, empty, or made for another tokenizer or sequence length.
    """
    places = _agree(lambda: [_place(source, config) for source in sources])
    for index, (source, (folder, _)) in enumerate(zip(sources, places)):
        for other, (before, _) in zip(sources[:index], places):
            if folder == before:
                raise UserError(f'{other.name} and {source.name} use the same folder {folder}; give each its own')
    leader = dist.get_local_rank() == 0
    _agree(lambda: [_fetch(source.name, *place) for source, place in zip(sources, places)] if leader else None)
    return _agree(lambda: [_open(source.name, *place, config) for source, place in zip(sources, places)])


def _agree(run: Callable[[], T]) -> T:
    """Runs something on every rank; if it fails on one, it fails on all, so that none waits for the others for ever."""
    result, error = None, None
    try:
        result = run()
    except Exception as caught:
        error = caught
    failures = dist.all_gather_object(None if error is None else (isinstance(error, UserError), str(error)))
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            by_user, message = failure
            raise UserError(message) if by_user else RuntimeError(f'rank {rank} failed: {message}')
    return result  # pyright: ignore[reportReturnType]


def _place(source: StreamConfig | EvalSetConfig, config: RunConfig) -> tuple[str, str | None]:
    """The local folder of a dataset and, if shards may be missing from it, where they come from."""
    if source.remote is None and source.local is None:
        raise UserError(f'{source.name}: say where its shards are, with `local`, `remote` or both')
    if source.remote is None or (source.local is None and not urlparse(source.remote).scheme):
        return os.path.abspath(source.local or source.remote or ''), None
    if source.local is not None:
        folder = os.path.abspath(source.local)
        return folder, None if folder == os.path.abspath(source.remote) else source.remote
    # A cache of the run's own, found again when the run starts again on this machine.
    run = config.run_folder if urlparse(config.run_folder).scheme else os.path.abspath(config.run_folder)
    key = hashlib.sha256(json.dumps([run, type(source).__name__, source.name, source.remote]).encode()).hexdigest()[:16]
    return str(private_folder(f'rewarm-{os.getuid()}', f'{source.name}-{key}')), source.remote


def _fetch(name: str, folder: str, remote: str | None) -> None:
    """Puts index and card in the cache, each whole and read through or not at all."""
    if remote is None:
        return
    index = Path(folder, INDEX_NAME)
    if not index.exists():
        if not _download(name, remote, folder, CARD_NAME):
            log.info('%s: no %s at %s', name, CARD_NAME, remote)
        if not _download(name, remote, folder, INDEX_NAME):
            raise UserError(
                f'{name}: no dataset at {remote}: {INDEX_NAME} is missing or may not be read. '
                'Check the address, or make the dataset with: rewarm convert'
            )
        try:
            read_index(index)
        except DamagedFile as error:
            index.unlink()
            address = f'{remote.rstrip("/")}/{INDEX_NAME}'
            raise UserError(f'{name}: {DamagedFile(address, place=error.place, what=error.what)}') from None


def _download(name: str, remote: str, folder: str, file: str) -> bool:
    """Fetches a file whole or not at all; False if it is not there."""
    target = os.path.join(folder, file)
    source = f'{remote.rstrip("/")}/{file}'
    Path(f'{target}.tmp').unlink(missing_ok=True)
    try:
        downloader = CloudDownloader.get(remote)
    except ValueError:
        raise UserError(f'{name}: {remote} is no place that shards can come from; use s3://bucket/prefix') from None
    try:
        if not urlparse(remote).scheme:
            open_regular(source).close()  # a device has no end
        downloader.download(source, f'{target}.tmp')
    except FileNotFoundError:
        return False
    except Exception as error:
        if getattr(error, 'response', {}).get('Error', {}).get('Code') in _ABSENT:
            return False
        raise
    finally:
        downloader.clean_up()
    os.replace(f'{target}.tmp', target)
    return True


def _open(name: str, folder: str, remote: str | None, config: RunConfig) -> Dataset:
    index = _read_index(name, folder, remote)
    if remote is not None and dist.get_local_rank() == 0:
        remove_half_fetched(Path(folder), set(index.names))
    card = _read_card(name, folder)
    lengths = [shard.encoding.length for shard in index.shards]
    for length in set(lengths):
        _check_length(name, folder, card, length, config)
    parts = _read_part_cards(name, folder, index) if card is None else []
    for part in parts:
        _check_tokenizer(name, folder, part, config)
        _check_length(name, folder, part, None, config)
    _check_card(name, folder, card, index, config, told=bool(parts))
    if remote is None:
        _check_shards_are_there(name, folder, index.shards)
    vocab_size = config.model.shape.vocab_size
    return Dataset(
        name=name,
        folder=folder,
        remote=remote,
        readers=tuple(make_readers(index, folder)),
        samples_per_shard=np.array([shard.samples for shard in index.shards], np.int64),
        shard_hashes=tuple(_describe(shard) for shard in index.shards),
        compressed=any(shard.zip_data for shard in index.shards),
        tokens_per_sample=lengths[0] if len(set(lengths)) == 1 else None,
        vocab_size=min(vocab_size, card.vocab_size) if card else vocab_size,
        card=card,
    )


def _read_index(name: str, folder: str, remote: str | None) -> Index:
    path = os.path.join(folder, INDEX_NAME)
    try:
        index = read_index(path)
    except FileNotFoundError:
        raise UserError(
            f'{name}: no dataset in {folder}: {INDEX_NAME} is missing. '
            'Make it with: rewarm convert; or add `remote` to say where to fetch it from'
        ) from None
    except DamagedFile as error:
        way_out = 'Make the dataset again' if remote is None else f'Remove it, and it is fetched again from {remote}'
        raise UserError(f'{name}: {error}. {way_out}') from None
    if not index.samples:
        raise UserError(f'{name}: the dataset in {folder} holds no samples. Make it from more text')
    return index


def _read_card(name: str, folder: str) -> DatasetCard | None:
    try:
        return read_card(folder)
    except DamagedFile as error:
        raise UserError(f'{name}: {error}. Convert the data again, or remove the file') from None


def _read_part_cards(name: str, folder: str, index: Index) -> list[DatasetCard]:
    try:
        return read_part_cards(folder, index.names)
    except DamagedFile as error:
        raise UserError(f'{name}: {error}. Convert the data again, or remove the file') from None


def _check_length(name: str, folder: str, card: DatasetCard | None, length: int | None, config: RunConfig) -> None:
    seq_len = card.seq_len if card else None if length is None else length - 1
    fits = length is None or length in (config.max_seq_len, config.max_seq_len + 1)
    if not fits or (card and card.seq_len != config.max_seq_len):
        raise UserError(
            f'{name}: the samples in {folder} are {seq_len} tokens long, but max_seq_len is {config.max_seq_len}. '
            f'Set max_seq_len to {seq_len}, or convert with --seq-len {config.max_seq_len}'
        )


def _check_card(
    name: str, folder: str, card: DatasetCard | None, index: Index, config: RunConfig, *, told: bool
) -> None:
    if card is None and told:
        return  # by the cards of what was merged
    if card is None:
        log.warning('%s: %s has no %s, so its tokenizer is not checked', name, folder, CARD_NAME)
        return
    if problems := count_problems(card, index.samples):
        raise UserError(
            f'{name}: {INDEX_NAME} and {CARD_NAME} in {folder} do not belong together: {"; ".join(problems)}. '
            'Copy the whole dataset again from where it came, or make it again with: rewarm convert'
        )
    _check_tokenizer(name, folder, card, config)


def _check_tokenizer(name: str, folder: str, card: DatasetCard, config: RunConfig) -> None:
    ours = remembered_hash(find_run_tokenizer(config))
    if card.tokenizer_hash != ours:
        raise UserError(
            f'{name}: the tokens in {folder} are of another tokenizer ({card.tokenizer_hash[:19]}...) than '
            f'{config.tokenizer} ({ours[:19]}...). Set `tokenizer` to the one it was made with, or convert it again'
        )


def _check_shards_are_there(name: str, folder: str, shards: Sequence[Shard]) -> None:
    names = {file.basename for shard in shards for file in shard.files}
    there = files_there(Path(folder), names)
    missing = [shard.files[-1] for shard in shards if not any(file.basename in there for file in shard.files)]
    if missing:
        first = missing[0]
        raise UserError(
            f'{name}: {len(missing)} of {len(shards)} shards are missing from {folder}, the first is {first.basename} '
            f'({problem_of(Path(folder, first.basename), first)}). '
            'Copy them there, or add `remote` to say where to fetch them from'
        )


def _describe(shard: Shard) -> str:
    """The shard's own hash, or its size if it was written without."""
    data = shard.raw_data
    return ' '.join(f'{name}:{value}' for name, value in sorted(data.hashes.items())) or f'bytes:{data.bytes}'

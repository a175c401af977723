"""Shards to batches: the loader of a stage from any position, and the loaders of evaluation sets.

Global batch b of a stage is the samples b * G up to (b + 1) * G in order; each rank takes its slice, and torch hands
batches to loader workers in turn. So neither ranks nor workers change what a batch holds.
"""

import atexit
import contextlib
import functools
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from rewarm import signals
from rewarm.config.errors import UserError
from rewarm.config.schema import EvalSetConfig, RunConfig, StageConfig
from rewarm.data.datasets import Dataset, open_datasets
from rewarm.data.mixed_dataset import MixedDataset, Sample
from rewarm.data.order import Mix, MixStream, fingerprint
from rewarm.data.shared_memory import build_dataset, check_space, release, sweep_shared_memory
from rewarm.formats.card import DatasetCard

__all__ = [
    'IGNORED',
    'EvalData',
    'MixedDataset',
    'TrainData',
    'build_eval_loader',
    'build_train_loader',
    'release',
    'sweep_shared_memory',
]

IGNORED = -100
"""Label of a position that has no target."""

_LONGEST_TEMPORARY_FOLDER = 107 - len('/pymp-12345678/listener-4194304-12345-12345678')
"""In bytes; Linux's sockets have names of at most 107, and multiprocessing adds this much."""


@dataclass(frozen=True, eq=False)
class TrainData:
    """What a stage trains on.

    Args:
        spec (DataSpec): For the Trainer; counts samples and tokens on the host.
        dataset (MixedDataset): To be released after the stage.
        mix (Mix): The order; counts samples of each stream.
        fingerprint (dict[str, Any]): JSON types; equal at a later start if and only if the order is the same.
    """

    spec: DataSpec
    dataset: MixedDataset
    mix: Mix
    fingerprint: dict[str, Any]


@dataclass(frozen=True, eq=False)
class EvalData:
    """One evaluation set.

    Args:
        spec (DataSpec): For an Evaluator.
        dataset (MixedDataset): To be released after the stage.
        samples (int): Samples that are read, without those that fill up the last batch.
        card (DatasetCard | None): The card, which knows the bytes of the text; None for a part of a set too, whose bytes
            nobody has counted.
        fingerprint (dict[str, Any]): JSON types; equal at a later start if and only if the set's samples are the same.
    """

    spec: DataSpec
    dataset: MixedDataset
    samples: int
    card: DatasetCard | None
    fingerprint: dict[str, Any]


def build_train_loader(stage: StageConfig, *, config: RunConfig, start_sample: int, total_samples: int) -> TrainData:
    """Builds the loader of one stage from any position. All ranks call it together, after ``initialize_dist``.

    Args:
        stage (StageConfig): The stage.
        config (RunConfig): The run's settings.
        start_sample (int): Samples of the stage already trained on, over all ranks.
        total_samples (int): Samples of the whole stage, over all ranks.

    Returns:
        TrainData: Loader, dataset, order and fingerprint. The loader is read once.

    Raises:
        UserError: If a dataset does not fit the run, or the ranks do not divide the global batch.
    """
    ranks, global_batch = dist.get_world_size(), config.global_train_batch_size
    if global_batch % ranks:
        raise UserError(f'global_train_batch_size {global_batch} does not divide by {ranks} ranks; start on a divisor')
    if start_sample % global_batch or total_samples % global_batch:
        raise ValueError(f'samples {start_sample} and {total_samples} are not whole batches of {global_batch}')
    sources = open_datasets(stage.train.streams, config)
    streams = [
        MixStream(stream.name, source.samples_per_shard, stream.share, stream.shuffle)
        for stream, source in zip(stage.train.streams, sources)
    ]
    block_size = config.data.shuffle_block_size
    mix = Mix(streams, config.seed, stage.name, block_size)
    dataset = _build(sources, mix, config, global_batch // ranks, start_sample, total_samples, config.data.num_workers)
    hashes = {source.name: source.shard_hashes for source in sources}
    return TrainData(
        spec=_data_spec(dataset, config.data.num_workers),
        dataset=dataset,
        mix=mix,
        fingerprint=fingerprint(streams, hashes, config.seed, block_size),
    )


def build_eval_loader(eval_set: EvalSetConfig, *, config: RunConfig) -> EvalData:
    """Builds the loader of an evaluation set: each sample, or the first ``eval.max_samples``, once, in order, on any ranks.

    The last batch is filled up with samples whose labels are all ignored, so that each rank has as many batches. All
    ranks call it together, after ``initialize_dist``.

    Args:
        eval_set (EvalSetConfig): The set.
        config (RunConfig): The run's settings.

    Returns:
        EvalData: Loader, dataset, size and card. The loader may be read again and again.

    Raises:
        UserError: If the dataset does not fit the run.
    """
    (source,) = open_datasets([eval_set], config)
    stream = MixStream(eval_set.name, source.samples_per_shard, Fraction(1), shuffle=False)
    mix = Mix([stream], config.seed, 'eval', config.data.shuffle_block_size)
    whole = mix.samples_per_stream[eval_set.name]
    samples = min(whole, config.eval.max_samples or whole)
    workers = min(1, config.data.num_workers)  # one keeps ahead of a forward pass; each is forked at every evaluation
    dataset = _build([source], mix, config, config.device_train_microbatch_size, 0, samples, workers)
    return EvalData(
        spec=_data_spec(dataset, workers),
        dataset=dataset,
        samples=samples,
        card=source.card if samples == whole else None,
        fingerprint=fingerprint([stream], {source.name: source.shard_hashes}, 0, 0),  # in order: no seed, no blocks
    )


def _build(
    sources: Sequence[Dataset], mix: Mix, config: RunConfig, device_batch: int, start: int, total: int, workers: int
) -> MixedDataset:
    predownload = 2 * device_batch
    if any(source.remote or source.compressed for source in sources):
        # While one block is read, the next arrives: the readers of a node share that work.
        readers = dist.get_world_size() * max(1, workers)
        predownload = max(predownload, config.data.shuffle_block_size // readers)
    return build_dataset(
        lambda: MixedDataset(
            sources,
            mix,
            start=start,
            total=total,
            device_batch=device_batch,
            seq_len=config.max_seq_len,
            predownload=predownload,
        )
    )


def _data_spec(dataset: MixedDataset, workers: int) -> DataSpec:
    if workers:
        _check_temporary_folder()
        batch_bytes = (dataset.batch_size or 1) * (2 * dataset._seq_len + 1) * 8  # as _collate makes it
        batches = dist.get_local_world_size() * (2 * workers + 1)  # each worker keeps two ahead, and one is in use
        check_space(batches * batch_bytes, 'the batches of loader workers (`data.num_workers`)')
        _end_workers_at_exit()
    loader = _Loader(
        dataset,
        batch_size=dataset.batch_size,
        num_workers=workers,
        collate_fn=functools.partial(_collate, seq_len=dataset._seq_len),
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
        persistent_workers=False,  # each loader is read once, or seldom
        worker_init_fn=_ignore_shutdown_signals,
        generator=torch.Generator(),  # starting workers must not move the run's random state
    )
    return DataSpec(loader, get_num_samples_in_batch=_num_samples, get_num_tokens_in_batch=_num_tokens)


def _check_temporary_folder() -> None:
    """Workers hand batches over through sockets in the temporary folder; one they cannot make is a batch never sent."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY_FOLDER:
        raise UserError(
            f'the temporary folder {folder} has a name of more than {_LONGEST_TEMPORARY_FOLDER} bytes, too long for the '
            'sockets of loader workers: set TMPDIR to a shorter one, such as /tmp, or write `data: {num_workers: 0}`'
        )


_workers: weakref.WeakSet[Any] = weakref.WeakSet()


class _Loader(DataLoader[Any]):
    """A DataLoader that remembers its workers, and starts them deaf: a signal before they ignore it would kill them."""

    def check_worker_number_rationality(self) -> None:
        """Torch warns of more workers than cores, twice for each loader; far too many are a warning of the plan."""

    def __iter__(self) -> Any:
        with signals.held_back():
            iterator = super().__iter__()
        _workers.update(getattr(iterator, '_workers', ()))
        return _Batches(iterator)


class _Batches:
    """A loader's iterator. From a worker, torch brings an error as one whose text is the worker's whole traceback."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> '_Batches':
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except UserError as error:
            kind = type(error)
            raise kind(str(error).rpartition(f'{kind.__name__}: ')[2].rstrip()) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


@functools.cache
def _end_workers_at_exit() -> None:
    """Python ends its child processes with SIGTERM and waits; ours ignore it. Registered later, so called before."""

    @atexit.register
    def end() -> None:
        for worker in list(_workers):
            with contextlib.suppress(ValueError):  # closed
                if worker.is_alive():
                    worker.kill()


def _collate(samples: list[Sample], seq_len: int) -> dict[str, torch.Tensor]:
    """Makes a batch: inputs and labels int64 ``(B, T)``, ids int64 ``(B,)``."""
    inputs = np.zeros((len(samples), seq_len), np.int64)
    labels = np.full((len(samples), seq_len), IGNORED, np.int64)
    for row, tokens in enumerate(sample['tokens'] for sample in samples):
        if tokens is not None:
            inputs[row] = tokens[:seq_len]
            labels[row, : len(tokens) - 1] = tokens[1:]  # with no token after the last input, it has no target
    return {
        'input_ids': torch.from_numpy(inputs),
        'labels': torch.from_numpy(labels),
        'sample_ids': torch.tensor([sample['id'] for sample in samples], dtype=torch.int64),
    }


def _num_samples(batch: dict[str, torch.Tensor]) -> int:
    return batch['input_ids'].shape[0]


def _num_tokens(batch: dict[str, torch.Tensor]) -> int:
    return batch['input_ids'].numel()


def _ignore_shutdown_signals(worker: int) -> None:
    """A scheduler signals the whole group: the main process then saves, and needs its workers to the end."""
    signals.ignore()

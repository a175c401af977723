"""Text to shards: reads parts in order, tokenizes them in parallel, packs them in order, publishes the whole at once.

    files --read_parts--> parts --workers--> tokens --Packer--> shards --Staging.publish--> OUT

Only the middle runs in parallel and it looks at one part at a time, so the bytes do not depend on the workers.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import UserError
from rewarm.data.documents import Part
from rewarm.data.first_look import look_at_sources
from rewarm.data.job import Job
from rewarm.data.pieces import Piece, make_tokenize
from rewarm.data.pool import Workers
from rewarm.data.publish import existing, finish, remove_leftover, upload_dataset
from rewarm.data.reading import PART_BYTES, read_parts
from rewarm.data.shards import SHARD_BYTES, Packer, ShardFormat
from rewarm.data.sources import find_sources
from rewarm.data.split import share_in_words, split_warning
from rewarm.data.staging import Staging, default_staging, read_identity
from rewarm.data.tokens import EncoderName, ParityError, find_tokenizer, read_tokenizer
from rewarm.formats.card import REJECTS_NAME, DatasetCard
from rewarm.formats.tokenizer import tokenizer_hash


@dataclass(frozen=True)
class Conversion:
    """What a conversion made."""

    out: str
    """Where the dataset is."""
    cards: dict[str, DatasetCard]
    """By split: ``train`` and ``val``, or ``''`` alone."""
    already_done: bool
    """Whether it was there before, from the same files and settings."""


def convert(
    sources: Sequence[str],
    out: str,
    *,
    tokenizer: str,
    seq_len: int,
    text_key: str = 'text',
    workers: int | None = None,
    val_fraction: float = 0.0,
    eod: str | None = None,
    encoder: EncoderName = 'auto',
    compression: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_rejects: float = 0.001,
    staging: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
    commit_seconds: float = 5.0,
    part_bytes: int = PART_BYTES,
) -> Conversion:
    """Converts text to a dataset of shards. Killed and called again, it goes on and ends with the same bytes.

    Args:
        sources (Sequence[str]): Files and folders, local or ``s3://``, read in this order.
        out (str): Folder or ``s3://`` prefix that will hold the dataset (with `val_fraction`: ``train/`` and ``val/``).
        tokenizer (str): Path to a ``tokenizer.json`` or its folder, or a Hugging Face id in the local cache.
        seq_len (int): Sequence length in tokens; blocks hold one more and overlap by one, so that every token behind
            the first is a target once. Tokens behind the last full block are dropped and counted in the card.
        text_key (str): Key or column of the text; of several with commas between, the first that is there.
        workers (int | None): Processes that tokenize; None is one a core. Any number gives the same bytes.
        val_fraction (float): Share of documents, chosen by a keyed hash of their text, that goes to ``val/``. What was
            reached is in the cards and said at the end.
        eod (str | None): Content of the token that ends a document; None is what the tokenizer's files name.
        encoder (EncoderName): Library that encodes; ``auto`` takes the fast one where it is known to be equal.
        compression (str | None): None, ``zstd`` or ``zstd:LEVEL``.
        shard_bytes (int): Upper bound of an uncompressed shard in bytes.
        max_rejects (float): Share of unreadable records above which nothing is published.
        staging (str | None): Folder for unfinished work; None is ``OUT.staging``, or for a bucket one below ``TMPDIR``.
        progress (bool): Whether to show a bar on stderr.
        say (Callable[[str], None]): Gets a few lines about what is done.
        commit_seconds (float): Longest work that a kill can lose, in seconds.
        part_bytes (int): Uncompressed bytes that a worker takes at a time.

    Returns:
        Conversion: Where the dataset is, and its cards.

    Raises:
        UserError: If something given is wrong, too many records are, or the text does not fill one block.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f'--val-fraction must be at least 0 and below 1, got {val_fraction}')
    if not 0 <= max_rejects <= 1:
        raise UserError(f'--max-rejects is a share between 0 and 1, got {max_rejects}')
    workers = workers if workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise UserError(f'--workers must be at least 1, got {workers}')
    files = find_sources(sources)
    look_at_sources(files, text_key)
    path = find_tokenizer(tokenizer)
    facts = read_tokenizer(path, eod=eod, encoder=encoder)
    shape = ShardFormat(seq_len, facts.dtype, compression, shard_bytes)
    job = Job(files, out.rstrip('/'), facts, shape, text_key, val_fraction, tokenizer_hash(path), part_bytes)
    folder = Path(staging) if staging else default_staging(job.out)
    if (done := existing(job)) is not None:
        remove_leftover(folder, job)
        say(f'{job.out}: already converted from these files with these settings')
        return Conversion(job.out, done, already_done=True)
    job = job.as_begun(read_identity(folder))
    stage = Staging(folder, job.identity, job.splits)
    try:
        if stage.restarted:
            say(f'starting again from the beginning, {folder} held a try that failed ({stage.restarted})')
        say(f'{len(job.sources)} files, {sum(s.bytes for s in job.sources) / 1e6:,.1f} MB -> {job.out}')
        say(f'encoder: {facts.why}')
        if stage.progress.source == len(job.sources):
            say(f'all files are read already, what is left is to publish {folder}')
        elif stage.progress.source or stage.progress.part:
            say(f'going on at file {stage.progress.source + 1} of {len(job.sources)}, from {folder}')
        left = _fill(job, stage, workers, commit_seconds, progress)
        cards = finish(job, stage, left, max_rejects)
        if is_bucket(job.out):
            upload_dataset(stage.dataset, job.out, progress)
            stage.remove()
        else:
            stage.publish(Path(job.out))
    except ParityError:
        stage.remove()  # what the fast encoder made is not to be trusted
        raise
    except UserError as error:
        stage.fail(str(error))
        raise
    finally:
        stage.close()
    for split, card in cards.items():
        say(
            f'{job.out}{"/" if split else ""}{split}: {card.documents:,} documents, {card.tokens:,} tokens, '
            f'{card.samples:,} blocks of {seq_len + 1} ({card.tokens_dropped} tokens behind the last one dropped)'
        )
    for line in _about_split(job, cards):
        say(line)
    if stage.progress.rejects:
        say(f'{stage.progress.rejects:,} records were rejected: see {REJECTS_NAME}')
    return Conversion(job.out, cards, already_done=False)


def _about_split(job: Job, cards: dict[str, DatasetCard]) -> Iterator[str]:
    """What share of documents and tokens is in ``val``, and a warning where that is far from what was asked."""
    val = cards.get('val')
    if val is None or val.share_of_documents is None or val.share_of_tokens is None:
        return
    documents, tokens = share_in_words(val.share_of_documents), share_in_words(val.share_of_tokens)
    yield f'val: {documents} of documents, {tokens} of tokens ({share_in_words(job.val_fraction)} was asked for)'
    everything = sum(card.documents for card in cards.values())
    if warning := split_warning(everything, val.documents, job.val_fraction, job.split_rule):
        yield f'warning: {warning}'


def _fill(job: Job, stage: Staging, workers: int, commit_seconds: float, show: bool) -> dict[str, int]:
    """Does the work that is left; returns the tokens of each split that are in no block."""
    now, at_start = stage.progress, sum(c.tokens for c in stage.progress.counts.values())
    packers: dict[str, Packer] = {}
    for split, counts in now.counts.items():

        def on_shard(entry: dict[str, Any], split: str = split, counts: Any = counts) -> None:
            stage.append(f'shards-{split}', [entry])
            counts.shards += 1

        pending = stage.pending(split, job.shape.dtype)
        packers[split] = Packer(job.shape, stage.dataset / split, on_shard, pending=pending, number=counts.shards)

    hashes: dict[int, str] = {}

    def commit() -> None:
        for packer in packers.values():
            packer.wait()
        used = sorted(index for index in hashes if index < now.source)
        stage.append('hashes', [[index, hashes.pop(index)] for index in used])
        stage.commit({split: packer.pending for split, packer in packers.items()})

    if now.source < len(job.sources):
        total, done = sum(s.bytes for s in job.sources), sum(s.bytes for s in job.sources[: now.source])
        bar = tqdm(
            total=total, initial=done, unit='B', unit_scale=True, disable=not show, desc='convert',
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )  # fmt: skip
        with bar, Workers(workers, make_tokenize, (job.facts, job.text_key, job.val_fraction, job.split_rule)) as pool:
            started = committed = time.monotonic()
            parts = _parts(job, stage, bar.update, hashes)
            for part, piece in pool.map(parts):
                _take(part, piece, job, stage, packers)
                if time.monotonic() - committed >= commit_seconds:
                    commit()
                    committed = time.monotonic()
                rate = (sum(c.tokens for c in now.counts.values()) - at_start) / (time.monotonic() - started)
                bar.set_postfix_str(f'{rate / 1e6:.2f} Mtokens/s', refresh=False)
        now.source, now.part = len(job.sources), 0
        commit()
    return {split: packer.close() for split, packer in packers.items()}


def _parts(job: Job, stage: Staging, on_read: Callable[[int], Any], hashes: dict[int, str]) -> Iterator[Part]:
    first, skip = stage.progress.source, stage.progress.part
    for index in range(first, len(job.sources)):

        def on_hash(sha256: str, index: int = index) -> None:
            hashes[index] = sha256

        for part in read_parts(
            job.sources[index], index, text_key=job.text_key, work=stage.work,
            on_read=on_read, on_hash=on_hash, part_bytes=job.part_bytes, split_rule=job.split_rule,
        ):  # fmt: skip
            if index > first or part.index >= skip:
                yield part


def _take(part: Part, piece: Piece, job: Job, stage: Staging, packers: dict[str, Packer]) -> None:
    for split, packer in packers.items():
        counts, tokens = stage.progress.counts[split], piece.tokens[split]
        counts.documents += piece.documents[split]
        counts.bytes += piece.bytes[split]
        counts.tokens += len(tokens)
        packer.add(tokens)
    name = job.sources[part.source].name
    stage.append('rejects', [{'file': name, 'line': line, 'reason': reason} for line, reason in piece.rejects])
    stage.progress.rejects += len(piece.rejects)
    stage.progress.empty += piece.empty
    stage.progress.source, stage.progress.part = part.source, part.index + 1

"""The last step: check the whole, write index and card, and never touch what is already there."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rewarm import __version__
from rewarm.buckets.bucket import is_bucket, open_bucket
from rewarm.config.errors import UserError
from rewarm.data.job import Job
from rewarm.data.shards import write_index
from rewarm.data.split import rule_in_words, rule_of
from rewarm.data.staging import Staging, read_identity
from rewarm.formats.card import CARD_NAME, REJECTS_NAME, CardSource, DatasetCard, read_card
from rewarm.formats.files import write_whole
from rewarm.formats.shards import INDEX_NAME, read_index
from rewarm.formats.strict_json import parse_record

CARD_VERSION = 1
"""Version of the card's format."""


def finish(job: Job, stage: Staging, dropped: dict[str, int], max_rejects: float) -> dict[str, DatasetCard]:
    """Checks the whole, and writes the index, the card and the rejects of each split.

    Args:
        job (Job): The conversion.
        stage (Staging): Its folder, with all shards written.
        dropped (dict[str, int]): Tokens of each split that are in no block.
        max_rejects (float): Share of unreadable records above which nothing is published.

    Returns:
        dict[str, DatasetCard]: By split.

    Raises:
        UserError: If too many records were rejected, or a split does not fill one block.
    """
    now = stage.progress
    seen = sum(c.documents for c in now.counts.values()) + now.empty + now.rejects
    if now.rejects > max_rejects * seen:
        raise UserError(
            f'{now.rejects:,} of {seen:,} records ({now.rejects / seen:.2%}) could not be read, more than --max-rejects '
            f'{max_rejects} allows: see {stage.work / REJECTS_NAME}. Nothing was published, and the shards are kept: '
            f'look at the list, then call again with --max-rejects {_above(now.rejects / seen)}'
        )
    hashes = dict(stage.rows('hashes'))
    sources = tuple(CardSource(name=s.name, bytes=s.bytes, sha256=hashes[i]) for i, s in enumerate(job.sources))
    rejects = stage.work / REJECTS_NAME
    cards: dict[str, DatasetCard] = {}
    documents, tokens = (sum(getattr(c, key) for c in now.counts.values()) for key in ('documents', 'tokens'))
    for split, counts in now.counts.items():
        folder, entries = stage.dataset / split, list(stage.rows(f'shards-{split}'))
        if not entries:
            raise UserError(_too_short(job, stage, split))
        write_index(folder, iter(entries))
        read_index(folder / INDEX_NAME)  # what no reader takes is not published
        write_whole(folder / REJECTS_NAME, rejects.read_bytes() if rejects.exists() else b'')
        cards[split] = DatasetCard(
            version=CARD_VERSION,
            tokenizer_hash=job.tokenizer_hash,
            vocab_size=job.facts.vocab_size,
            eod_id=job.facts.eod_id,
            seq_len=job.shape.seq_len,
            dtype=job.shape.dtype,
            documents=counts.documents,
            tokens=counts.tokens,
            bytes=counts.bytes,
            samples=sum(entry['samples'] for entry in entries),
            sources=sources,
            split=rule_in_words(split, job.val_fraction, job.split_rule),
            share_of_documents=round(counts.documents / documents, 6) if split else None,
            share_of_tokens=round(counts.tokens / tokens, 6) if split else None,
            tokens_dropped=dropped[split],
            documents_empty=now.empty,
            rejects=now.rejects,
            encoder=job.facts.why,
            settings=job.settings,
            converter=f'rewarm {__version__}',
        )
        write_whole(folder / CARD_NAME, (cards[split].model_dump_json(indent=2) + '\n').encode())
    return cards


def _above(share: float) -> str:
    return f'{min(1.0, share * 1.01 + 1e-6):.6f}'.rstrip('0')


def _too_short(job: Job, stage: Staging, split: str) -> str:
    now, counts = stage.progress, stage.progress.counts[split]
    if not any(each.documents for each in now.counts.values()):
        rejects = f', {now.rejects:,} could not be read (see {stage.work / REJECTS_NAME})' if now.rejects else ''
        return f'there is no text in these files: {now.empty:,} records are empty{rejects}'
    more = 'raise --val-fraction or give' if split == 'val' else 'give'
    return (
        f'{split or "the text"} has {counts.tokens:,} tokens in {counts.documents:,} documents, less than one block of '
        f'{job.shape.seq_len + 1}: {more} more text, or a smaller --seq-len'
    )


def existing(job: Job) -> dict[str, DatasetCard] | None:
    """Looks at what is already at OUT.

    Returns:
        dict[str, DatasetCard] | None: Cards by split if it is what this conversion would make; None if nothing is there.

    Raises:
        UserError: If something else is there.
    """
    cards: dict[str, DatasetCard] = {}
    if is_bucket(job.out):
        bucket = open_bucket(job.out)
        names = [name for name, _, _ in bucket.list(job.out)]
        if not any(name.endswith(INDEX_NAME) for name in names):
            return None  # empty, or an upload that did not end
        for split in job.splits:
            url = f'{job.out}/{split}/{CARD_NAME}' if split else f'{job.out}/{CARD_NAME}'
            if (data := bucket.read(url)) is not None:
                cards[split] = parse_record(DatasetCard, data, url)
    else:
        out = Path(job.out)
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            if out.is_symlink():
                raise UserError(
                    f'{job.out}: is a link, which a folder cannot replace at the end; name the folder itself'
                )
            return None
        cards = {split: card for split in job.splits if (card := read_card(out / split)) is not None}
    given = [(s.name, s.bytes) for s in job.sources]
    if set(cards) == set(job.splits) and all(
        card.settings == replace(job, split_rule=rule_of(card.settings)).settings
        and [(s.name, s.bytes) for s in card.sources] == given
        for card in cards.values()
    ):
        return cards
    if is_bucket(job.out) and not cards:
        raise UserError(f'{job.out}: holds a dataset that this program did not make; convert to another place')
    what = [
        f'{key}: {value} there, {job.settings.get(key)} now'
        for card in cards.values()
        for key, value in card.settings.items()
        if job.settings.get(key) != value
    ]
    raise UserError(
        f'{job.out}: already holds something else ({"; ".join(dict.fromkeys(what)) or "other files"}); '
        'convert to another place, or remove it first'
    )


def remove_leftover(folder: Path, job: Job) -> None:
    """Removes the staging folder of a conversion that was killed between publishing and tidying up."""
    begun = job.as_begun(there := read_identity(folder))
    if begun.identity == there:
        Staging(folder, begun.identity, job.splits).remove()


def upload_dataset(folder: Path, out: str, show: bool) -> None:
    """Uploads a finished dataset; the indexes, without which there is none, go up last."""
    bucket = open_bucket(out)
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    with tqdm(total=len(files), unit='file', desc='upload', disable=not show) as bar:

        def upload(path: Path) -> None:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            bucket.upload(path, f'{out}/{path.relative_to(folder).as_posix()}', digest)
            bar.update()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(upload, (path for path in files if path.name != INDEX_NAME)))
        for path in reversed([path for path in files if path.name == INDEX_NAME]):  # val, then train
            upload(path)

"""What the data on this machine says of itself, as far as a plan needs it: cards, sizes, and whether they fit the run."""

import os
from collections.abc import Iterator
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.config.limits import places
from rewarm.config.located import Loc, dotted
from rewarm.config.paths import is_url
from rewarm.config.schema import EvalSetConfig, RunConfig, StreamConfig
from rewarm.config.stages import StagePlan
from rewarm.formats.card import CARD_NAME, DatasetCard, read_card, read_part_cards
from rewarm.formats.shards import INDEX_NAME, read_index
from rewarm.formats.tokenizer_files import find_tokenizer, remembered_hash
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILE

__all__ = ['check_cards', 'count_samples', 'find_repeats', 'find_run_tokenizer', 'local_folder']


def local_folder(item: StreamConfig | EvalSetConfig) -> Path | None:
    """The folder on this machine that holds the data of a stream or eval set, if there is one.

    Args:
        item (StreamConfig | EvalSetConfig): What to look for.

    Returns:
        Path | None: A folder that exists.
    """
    for place in (item.local, item.remote):
        if place and not is_url(place) and os.path.isdir(place):
            return Path(place)
    return None


def count_samples(item: StreamConfig | EvalSetConfig) -> int | None:
    """Samples of a stream's or eval set's data; None where it is not on this machine, or cannot be read.

    Args:
        item (StreamConfig | EvalSetConfig): What to look for.

    Returns:
        int | None: As its card counts them, or else its index.
    """
    folder = local_folder(item)
    try:
        if folder is None:
            return None
        card = read_card(folder)
        return read_index(folder / INDEX_NAME).samples if card is None else card.samples
    except (FileNotFoundError, UserError):
        return None  # damage is a finding of `check_cards`, and of the start for what has no card


def check_cards(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    """Finds data on this machine that does not fit the run, by the cards of streams and eval sets.

    Args:
        config (RunConfig): The settings.

    Yields:
        tuple[Loc, str]: The way to a key, and what to write instead.
    """
    cards = list(_read_cards(config))
    ours = None
    if cards and (tokenizer := _find_tokenizer(config)) is not None:
        try:
            ours = remembered_hash(tokenizer)
        except UserError as error:
            yield ('tokenizer',), f'`tokenizer`: {error}'
    for at, card in cards:
        if isinstance(card, UserError):
            yield at, f'`{dotted(at)}`: {card}'
            continue
        if card.seq_len != config.max_seq_len:
            yield (
                ('max_seq_len',),
                f'`max_seq_len` is {config.max_seq_len}, but the data of `{dotted(at)}` was converted with {card.seq_len}. '
                f'Write {card.seq_len}, or convert it again with `--seq-len {config.max_seq_len}`',
            )
        if card.vocab_size > config.model.shape.vocab_size:
            text = f'`{dotted(at)}`: its tokenizer has {card.vocab_size:,} ids and the model only {config.model.shape.vocab_size:,}'
            yield at, f"{text}. Use the data's tokenizer and a `model.vocab_size` of at least that"
        if ours is not None and card.tokenizer_hash != ours:
            yield (
                ('tokenizer',),
                f'`tokenizer`: {config.tokenizer} ({_short(ours)}) is another tokenizer than the one that the data of `{dotted(at)}` '
                f'was converted with ({_short(card.tokenizer_hash)}). Name that one, or convert the data again',
            )


def find_run_tokenizer(config: RunConfig) -> Path:
    """Finds the tokenizer of a run: the one that its run file names, or the copy that its folder here has held since it began.

    Args:
        config (RunConfig): The settings.

    Returns:
        Path: A ``tokenizer.json``.

    Raises:
        UserError: If neither is on this machine.
    """
    try:
        return find_tokenizer(config.tokenizer)
    except UserError:
        own = Path(config.run_folder, RUN_TOKENIZER, TOKENIZER_FILE)
        if not is_url(config.run_folder) and own.is_file():
            return own
        raise


def find_repeats(config: RunConfig, stage: StagePlan) -> Iterator[str]:
    """Finds streams of a stage that are read more than once.

    Args:
        config (RunConfig): The settings.
        stage (StagePlan): The stage.

    Yields:
        str: A warning.
    """
    for stream, planned in zip(config.stages[stage.index].train.streams, stage.streams, strict=True):
        folder = local_folder(stream)
        card = read_card(folder) if folder else None
        if card is not None and planned['samples'] > card.samples > 0:
            passes = planned['samples'] / card.samples
            yield f'stage `{stage.name}` reads stream `{stream.name}` {passes:.1f} times: {planned["samples"]:,} of {card.samples:,} samples'


def _read_cards(config: RunConfig) -> Iterator[tuple[Loc, DatasetCard | UserError]]:
    seen: set[Path] = set()
    for at, item in places(config):
        folder = local_folder(item)
        if folder is None or folder in seen:
            continue
        seen.add(folder)
        try:
            yield from ((at, card) for card in _cards_in(folder))
        except UserError as error:
            yield at, error


def _cards_in(folder: Path) -> list[DatasetCard]:
    """The dataset's card, or the cards of those whose indexes were merged into its own."""
    if (card := read_card(folder)) is not None:
        return [card]
    index = folder / INDEX_NAME
    has_parts = any(next(folder.glob(f'{depth}{CARD_NAME}'), None) for depth in ('*/', '*/*/'))
    return read_part_cards(folder, read_index(index).names) if has_parts and index.exists() else []


def _find_tokenizer(config: RunConfig) -> Path | None:
    try:
        return find_run_tokenizer(config)
    except UserError:
        return None  # not on this machine, which `find_missing` tells


def _short(tokenizer_hash: str) -> str:
    return f'{tokenizer_hash[:19]}...'

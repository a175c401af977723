"""The README.md of an exported folder: a model card as Hugging Face has it, of what the checkpoint and its run say.

All that comes from files is text to show: it is escaped, and cannot become markup or a key of the front matter.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewarm.config.data_cards import local_folder
from rewarm.config.errors import UserError
from rewarm.config.schema import RunConfig
from rewarm.config.shapes import ModelShape, count_parameters
from rewarm.exchange.source import Source
from rewarm.formats.base import Base
from rewarm.formats.card import DatasetCard, read_card
from rewarm.formats.checkpoint import MODEL_FILE, STATE_FILE, BegunStage, SavedState
from rewarm.formats.records import EVALUATIONS, Damage, Evaluation, read_lines
from rewarm.model.base import find_base
from rewarm.model.weights import find_hf_folder
from rewarm.terminal import printable

__all__ = ['escape', 'write_card']

LONGEST_TEXT = 200
"""Characters of one text of others."""

MOST_ROWS = 200

TAGS = ('gpt_neox', 'continual-pretraining', 'rewarm')

_MARKUP = str.maketrans({mark: f'\\{mark}' for mark in string.punctuation if mark not in ',.:;/\'"=@%-'})


def write_card(source: Source, settings: RunConfig | None, shape: ModelShape, dtype: str) -> str:
    """Writes the card of a checkpoint.

    Args:
        source (Source): The checkpoint, with its run if that is known.
        settings (RunConfig | None): The run's settings.
        shape (ModelShape): Of the model.
        dtype (str): How its weights are stored.

    Returns:
        str: Markdown with YAML front matter.
    """
    state = source.checkpoint.saved
    base = state.base or _base_of(settings) or Base()
    name = escape(state.run_name or 'model')
    paragraphs = [
        _front_matter(base),
        f'# {name}, after {state.batch:,} batches' if state.is_trained else f'# {name}',
        _what_it_is(state, base, settings, shape),
        _licence(base, settings),
        *_stages(state, settings),
        *_evaluations(source, state),
        *_usage(),
        *_provenance(source, state, dtype),
    ]
    return '\n\n'.join(paragraphs) + '\n'


def escape(text: object) -> str:
    """A text of others as Markdown shows it: one line, no markup, no HTML, of a bounded length."""
    line = ' '.join(printable(str(text)).split())
    line = line if len(line) <= LONGEST_TEXT else f'{line[:LONGEST_TEXT]}...'
    return line.translate(_MARKUP)


def _front_matter(base: Base) -> str:
    """Values are JSON texts, which YAML reads as such whatever they hold."""
    lines = [f'license: {json.dumps(base.licence or "unknown")}']
    if base.name is not None:
        lines.append(f'base_model: {json.dumps(base.name)}')
    lines += ['library_name: "transformers"', 'pipeline_tag: "text-generation"', 'language: "und"', 'tags:']
    return '\n'.join(['---', *lines, *(f'- {json.dumps(tag)}' for tag in TAGS), '---'])


def _what_it_is(state: SavedState, base: Base, settings: RunConfig | None, shape: ModelShape) -> str:
    size = f'A GPT-NeoX language model of {count_parameters(shape):,} parameters'
    if not state.is_trained:
        return f'{size}: imported weights, not trained any further.'
    start = f'from {escape(base.name)}' if base.name else 'from weights whose name is not known'
    if settings is not None and settings.model.init_from == 'scratch':
        start = 'from random weights'
    return (
        f'{size}, trained {start} on {state.tokens or 0:,} tokens in {len(state.stages or ())} '
        f'stage{"s"[: len(state.stages or ()) != 1]}. The language of its data is not recorded.'
    )


def _licence(base: Base, settings: RunConfig | None) -> str:
    if base.licence is not None:
        return f'Licence of the base model: {escape(base.licence)}. The training data may set terms of its own.'
    if settings is not None and settings.model.init_from == 'scratch':
        return 'Licence: unknown. There is no base model; whoever trained it has to choose one.'
    return 'Licence: unknown. The files of the base model do not name one; find it out before you pass this model on.'


def _stages(state: SavedState, settings: RunConfig | None) -> Iterator[str]:
    begun = (state.stages or [])[:MOST_ROWS]
    if not begun:
        return
    yield '## What it was trained on'
    rows = [_stage_row(stage, following, state) for stage, following in zip(begun, [*begun[1:], None])]
    yield _table(('stage', 'tokens', 'of planned', 'streams', 'learning rate', "AdamW's state"), rows)
    cards = list(_dataset_rows(begun, settings))[:MOST_ROWS]
    yield _table(('stage', 'stream', 'documents', 'tokens', 'bytes of text', 'made by'), cards)


def _stage_row(stage: BegunStage, following: BegunStage | None, state: SavedState) -> list[str]:
    end = state.batch if following is None else following.start_batch
    about = stage.identity
    tokens = (end - stage.start_batch) * (about.tokens_per_batch or 0)
    streams = [f'{escape(each.get("name"))} ({escape(each.get("share"))})' for each in about.streams or []]
    return [
        escape(about.name),
        f'{tokens:,}',
        f'{about.tokens or 0:,}',
        ', '.join(streams[:MOST_ROWS]),
        _curve(about.schedule_as_written or about.schedule or {}),
        escape(about.optimizer_state),
    ]


def _curve(schedule: dict[str, object]) -> str:
    settings = ', '.join(f'{key} {value}' for key, value in schedule.items() if key != 'name' and value is not None)
    return escape(f'{schedule.get("name")}: {settings}')


def _dataset_rows(begun: Sequence[BegunStage], settings: RunConfig | None) -> Iterator[list[str]]:
    """What the datasets' own cards say, as far as they are still there."""
    configured = {} if settings is None else {stage.name: stage for stage in settings.stages}
    for stage in begun:
        streams = configured[stage.identity.name or ''].train.streams if stage.identity.name in configured else ()
        folders = {each.name: local_folder(each) for each in streams}
        for stream in stage.identity.streams or []:
            card = _card(folders.get(str(stream.get('name'))))
            about = ['not on this machine', '', '', ''] if card is None else _card_cells(card)
            yield [escape(stage.identity.name), escape(stream.get('name')), *about]


def _card(folder: Path | None) -> DatasetCard | None:
    try:
        return None if folder is None else read_card(folder)
    except UserError:  # the data may have been damaged or changed since
        return None


def _card_cells(card: DatasetCard) -> list[str]:
    return [f'{card.documents:,}', f'{card.tokens:,}', f'{card.bytes:,}', escape(card.converter)]


def _evaluations(source: Source, state: SavedState) -> Iterator[str]:
    if source.run is None:
        return
    lines = read_lines(EVALUATIONS, source.run / 'evals.jsonl', Damage('evals.jsonl'))
    here = {line.set: line for line in lines if line.batch == state.batch}
    if not here:
        return
    yield '## Evaluations at this checkpoint'
    rows = [_evaluation_row(line) for line in list(here.values())[:MOST_ROWS]]
    yield _table(('set', 'loss, nats a token', 'perplexity', 'bits a byte', 'tokens'), rows)


def _evaluation_row(line: Evaluation) -> list[str]:
    numbers = [line.loss, line.perplexity, line.bits_per_byte]
    shown = ['' if number is None or math.isnan(number) else f'{number:.4f}' for number in numbers]
    return [escape(line.set), *shown, '' if line.tokens_evaluated is None else f'{line.tokens_evaluated:,}']


def _usage() -> Iterator[str]:
    yield '## Use'
    yield (
        '```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n'
        "model = AutoModelForCausalLM.from_pretrained('.')\ntokenizer = AutoTokenizer.from_pretrained('.')\n```"
    )


def _provenance(source: Source, state: SavedState, dtype: str) -> Iterator[str]:
    yield '## Where it comes from'
    files = source.checkpoint.manifest.files
    rows = [
        ['run', escape(state.run_name)],
        ['checkpoint', f'batch {state.batch:,}, {state.tokens or 0:,} tokens'],
        [f'SHA-256 of its {STATE_FILE}', files[STATE_FILE].sha256],
        [f'SHA-256 of its {MODEL_FILE}', files[MODEL_FILE].sha256],
        ['tokenizer', escape(state.tokenizer_hash or 'not recorded')],
        ['exported as', dtype],
        ['exported by', f'rewarm {importlib.metadata.version("rewarm")}'],
    ]
    yield _table(('what', 'which'), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def _base_of(settings: RunConfig | None) -> Base | None:
    """For checkpoints of earlier versions, which do not say it."""
    kind, _, named = ('', '', '') if settings is None else settings.model.init_from.partition(':')
    if kind != 'hf':
        return None
    try:
        return find_base(named, find_hf_folder(named))
    except UserError:
        return find_base(named, Path('/nonexistent'))

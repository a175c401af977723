"""The questions of ``rewarm new``: only for what no option has said, each with its default, each answer checked at once."""

from collections.abc import Callable
from typing import TypeVar

import typer

from rewarm import terminal
from rewarm.config.errors import UserError
from rewarm.new.answers import Answers
from rewarm.new.dataset import find_dataset
from rewarm.new.model import Model, find_model
from rewarm.new.request import USUAL_REPLAY, parse_budget, parse_replayed, parse_source
from rewarm.new.tokenizer import compare_tokenizer

__all__ = ['ask']

T = TypeVar('T')

DATA = 'New data: the folder that `rewarm convert` wrote'
REPLAY = 'Old data to mix in against forgetting: its folder (empty: none)'
SHARE = 'Its share of the samples'
MODEL = 'Model: a size such as pythia-410m, a Hugging Face folder or id, or checkpoint:PATH'
TOKENIZER = 'Tokenizer that the data was converted with: tokenizer.json, its folder, or an id'
BUDGET = 'Budget: passes over the new data (1ep), tokens (10Btok) or batches (5000ba)'
RATE = "Peak learning rate (pre-training's is the default; higher learns more and forgets more)"


def ask(given: Answers) -> Answers:
    """Asks for what is missing.

    Args:
        given (Answers): What the options have said.

    Returns:
        Answers: With all that is needed for a run file.

    Raises:
        typer.Abort: If the user stops, with Ctrl-C or Ctrl-D.
    """
    typer.echo('Enter takes what is in brackets; Ctrl-C stops, and nothing is written.')
    if not given.data:
        given = given.having(data=[_until_right(DATA, None, _dataset)])
    if given.replay is None and (folder := _until_right(REPLAY, '', _old_dataset)):
        share = _until_right(SHARE, f'{float(USUAL_REPLAY):g}', lambda text: _share(folder, text))
        given = given.having(replay=[f'{folder}:{share}'])
    if not given.model:
        given = given.having(model=_until_right(MODEL, 'pythia-410m', _named_model))
    model = find_model(given.model or '')
    if given.tokenizer is None:
        given = given.having(tokenizer=_tokenizer(given, model.tokenizer))
    if given.budget is None:
        given = given.having(budget=_until_right(BUDGET, '1ep', _budget))
    if given.lr is None:
        given = given.having(lr=_until_right(RATE, f'{model.peak_rate:g}', _rate))
    if given.gpus is None:
        given = given.having(gpus=_until_right('GPUs it will run on', '1', _gpus))
    return given


def _until_right(question: str, default: str | None, read: Callable[[str], T]) -> T:
    """Asks until the answer can be read; says each time what is wrong with it."""
    while True:
        answer = typer.prompt(question, default=default, show_default=bool(default), type=str)
        try:
            return read(answer.strip())
        except UserError as error:
            typer.echo(f'  {terminal.printable(str(error))}')


def _dataset(text: str) -> str:
    found = find_dataset(parse_source(text).place)
    beside = f', and a validation set beside them ({found.val.place})' if found.val else ''
    length = f' of {found.train.seq_len:,} tokens' if found.train.seq_len else ''
    typer.echo(f'  {found.train.samples:,} sequences{length}{beside}')
    return text


def _old_dataset(text: str) -> str:
    return _dataset(text) if text else ''


def _share(folder: str, text: str) -> str:
    parse_replayed(f'{folder}:{text}', 'share')
    return text


def _named_model(text: str) -> str:
    model: Model = find_model(text)
    if model.missing:
        typer.echo(f'  It is not on this machine yet: {model.missing}')
    return text


def _tokenizer(given: Answers, of_the_model: str | None) -> str | None:
    """Asks for it if the model's own is not known, or not the one that the data was made with."""
    parts = [find_dataset(parse_source(each).place).train for each in given.data or ()]

    def fitting(text: str) -> str:
        compare_tokenizer(text, parts)
        return text

    if of_the_model is not None:
        try:
            fitting(of_the_model)
            return None
        except UserError as error:
            typer.echo(f'  {terminal.printable(str(error))}')
    return _until_right(TOKENIZER, None, fitting)


def _budget(text: str) -> str:
    parse_budget(text)
    return text


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1:
        raise UserError(f'{text!r:.30} is no learning rate; write a number above 0, such as 3.0e-4')
    return rate


def _gpus(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 6 and int(text)):
        raise UserError(f'{text!r:.30} is no number of GPUs; write 1 or more')
    return int(text)

"""From a request to a checked file: it is there only if ``rewarm plan`` would accept it, and replaces nothing unasked."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rewarm.config.errors import ConfigError, UserError
from rewarm.config.load import load
from rewarm.config.oddities import LARGEST_RATE
from rewarm.config.plan import Plan, make_plan
from rewarm.formats.files import write_whole
from rewarm.new.choices import Choices, choose
from rewarm.new.dataset import find_dataset
from rewarm.new.model import Model, find_model
from rewarm.new.request import Request, check_name
from rewarm.new.text import run_file, times
from rewarm.new.tokenizer import compare_tokenizer

__all__ = ['Draft', 'draft', 'publish', 'refuse_to_overwrite']


@dataclass(frozen=True)
class Draft:
    """A run file that is checked and not yet written."""

    request: Request
    text: str
    choices: Choices
    plan: Plan
    model: Model
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    def say(self, path: Path) -> list[str]:
        """What to tell once it is written: what it does, what is odd about it, and what to type next."""
        gpus = self.request.gpus
        mix = ', '.join(f'{float(stream.share):.3g} {stream.name}' for stream in self.choices.streams)
        lines = [
            f'{path}: {self.plan.batches:,} steps, {self.plan.tokens:,} tokens ({mix}), '
            f'the new data read {times(self.choices.passes)}',
            *(f'note: {note}' for note in self.notes),
            'Next:',
        ]
        lines += [f'  {self.model.missing}'] if self.model.missing else []
        return [*lines, f'  rewarm plan {path} --gpus {gpus}', f'  composer -n {gpus} -m rewarm train {path}']


def refuse_to_overwrite(path: Path) -> None:
    """Raises an error if there is something where the file is to be written.

    Raises:
        UserError: If there is, also a link that leads nowhere.
    """
    if os.path.lexists(path):
        raise UserError(f'{path} is there already, and is left as it is. Name another run, or replace it with --force')


def draft(request: Request) -> Draft:
    """Works a request out and checks what comes of it as ``rewarm plan`` does.

    Args:
        request (Request): What was asked for.

    Raises:
        UserError: If a dataset, the model or the tokenizer is not there or does not fit, or the run could not be planned.
    """
    check_name(request.name)
    _check_unique(request)
    if request.lr is not None and not 0 < request.lr <= LARGEST_RATE:
        raise UserError(f'--lr {request.lr:g}: a learning rate is above 0 and below 1, such as 3.0e-4')
    model = find_model(request.model)
    datasets = {each.name: find_dataset(each.place) for each in (*request.data, *request.replay)}
    evals = {each.name: find_dataset(each.place) for each in request.evals}
    choices = choose(request, model, datasets, evals)
    tokenizer = request.tokenizer or model.tokenizer
    if tokenizer is None:
        raise UserError(
            f'--model {request.model} does not say which tokenizer it was trained with. Name it: --tokenizer PATH'
        )
    parts = [*(stream.part for stream in choices.streams), *(part for _, part, _ in choices.evals)]
    note = compare_tokenizer(tokenizer, parts)
    notes = [note] if note else []
    text = run_file(request, model, choices, tokenizer)
    plan = _check(text, request)
    if not choices.evals:
        notes.append('There is no validation data, so neither forgetting nor learning will be measured.')
    elif not any(role == 'upstream' for _, _, role in choices.evals):
        notes.append(
            'There is no validation set of old data, so forgetting will not be measured. Name one: --eval NAME=DIR:old'
        )
    return Draft(request, text, choices, plan, model, (*notes, *plan.warnings))


def publish(draft: Draft, path: Path, *, force: bool = False) -> None:
    """Writes the file, whole or not at all.

    Args:
        draft (Draft): What to write.
        path (Path): Where to.
        force (bool): Whether a file that is there is replaced.

    Raises:
        UserError: If there is one, or it cannot be written.
    """
    if not force:
        refuse_to_overwrite(path)
    try:
        write_whole(path, draft.text.encode())
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from None


def _check_unique(request: Request) -> None:
    for option, sources in (('--data and --replay', (*request.data, *request.replay)), ('--eval', request.evals)):
        names = [each.name for each in sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f'{option}: two datasets are called {name}. Name one of them otherwise: NAME=DIR')


def _check(text: str, request: Request) -> Plan:
    """Reads the file as every other command does, before it is where it could be taken for a good one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'{request.name}.yaml')
        path.write_text(text, 'utf-8')
        try:
            return make_plan(load(path, world_size=request.gpus), gpus=request.gpus)
        except ConfigError as error:
            problems = [problem.replace(f'{path}:', f'{path.name}:') for problem in error.problems]
            raise UserError('\n'.join(['what was asked for is no run:', *(f'  {each}' for each in problems)])) from None

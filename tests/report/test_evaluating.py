"""An evaluation is seen while it goes on, and told where it reads a set to another length than before."""

import json

import pytest
import torch
from composer import DataSpec, Evaluator, Trainer
from torch.utils.data import DataLoader

from rewarm.config.shapes import ModelShape
from rewarm.formats.records import EVENTS, Damage, read_lines
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.pythia import Pythia
from rewarm.report import evaluating
from rewarm.report.evaluating import EvaluationProgress
from rewarm.report.records import Events

SHAPE = ModelShape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32)


def batches(count):
    row = torch.zeros(8, dtype=torch.int64)
    data = DataLoader([{'input_ids': row, 'labels': row}] * 2 * count, batch_size=2)  # type: ignore[arg-type]
    return DataSpec(data, get_num_samples_in_batch=lambda batch: 2, get_num_tokens_in_batch=lambda batch: 16)


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates sets of 3 and 2 batches of 16 tokens; gives what was said."""

    def call(**sets):
        said: list[str] = []
        sizes = sets or {'old': 48, 'new': 32}
        progress = EvaluationProgress(tmp_path, Events(tmp_path, active=True), said.append, sets=sizes)
        trainer = Trainer(
            model=PythiaForTraining(Pythia(SHAPE, gelu='tanh', compute_dtype=torch.float32)),
            eval_dataloader=[Evaluator(label=name, dataloader=batches(size // 16)) for name, size in sizes.items()],
            callbacks=[progress],
            progress_bar=False,
            device='cpu',
        )
        trainer.eval()
        trainer.close()
        return said

    return call


def events_of(folder):
    return read_lines(EVENTS, folder / 'events.jsonl', Damage(''))


def test_its_beginning_is_said_and_both_ends_are_recorded(evaluate, tmp_path, capsys):
    assert evaluate() == ['Evaluating old, new: 80 tokens, at batch 0.']
    begin, end = events_of(tmp_path)
    assert (begin.event, begin.batch, begin.fields['sets']) == ('eval_start', 0, ['old', 'new'])
    assert begin.fields['evaluated_tokens'] == 80
    assert (end.event, end.fields['sets']) == ('eval_end', ['old', 'new'])
    assert end.fields['seconds'] >= 0
    assert 'evaluating' not in capsys.readouterr().err  # it was over before a line was due


def test_a_long_one_shows_how_far_it_is_on_a_pipe_too(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(evaluating, 'PIPE_SECONDS', 1e-9)
    evaluate()
    shown = capsys.readouterr().err
    assert 'evaluating: ' in shown
    assert '80.0/80.0' in shown


def test_a_set_that_is_read_to_another_length_is_told_once(evaluate, tmp_path):
    line = {'stage': 's', 'batch': 0, 'tokens': 0, 'stage_tokens': 0, 'set': 'old', 'role': 'upstream', 'loss': 1.0}
    text = ''.join(json.dumps({**line, 'set': name, 'tokens_evaluated': 48}) + '\n' for name in ('old', 'new'))
    (tmp_path / 'evals.jsonl').write_text(text)
    _, said = evaluate()
    assert said.startswith('warning: `new` is evaluated on 32 tokens from here on, and was on 48: its losses')
    (changed,) = (event for event in events_of(tmp_path) if event.event == 'eval_size_changed')
    assert {key: changed.fields[key] for key in ('set', 'was', 'now')} == {'set': 'new', 'was': 48, 'now': 32}

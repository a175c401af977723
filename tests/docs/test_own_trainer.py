"""The code of docs/own-trainer.md runs as it stands there, and a resume by Composer's own checkpoints does not re-warm."""

import re
from pathlib import Path

import pytest
import torch
from composer.models import ComposerModel

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from tests.end_to_end.conftest import RUN_FILE

ROOT = Path(__file__).parents[2]
CODE = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/own-trainer.md').read_text(), re.DOTALL)


class Theirs(ComposerModel):
    """Somebody's model, which has nothing to do with ours; remembers the rate of each batch."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(16, 8)
        self.head = torch.nn.Linear(8, 16)

    def forward(self, batch):
        return self.head(self.embedding(batch['input_ids']))

    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), batch['input_ids'].flatten())


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the page takes for granted, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path('run.yaml').write_text(RUN_FILE.format(folder='runs/theirs', data='data'))
    torch.manual_seed(0)
    rows = [{'input_ids': row} for row in torch.randint(16, (8 * 40, 32))]
    return {'model': Theirs(), 'loader': torch.utils.data.DataLoader(rows, batch_size=8)}  # pyright: ignore


def rates(trainer):
    return [group['lr'] for group in trainer.state.optimizers[0].param_groups]


def test_the_page_s_code_trains_a_stage_at_the_rates_of_its_curve(names, capfd):
    (code,) = CODE
    exec(code, names)
    stage = make_plan(load('run.yaml')).stages[0]
    trainer = names['trainer']
    assert int(trainer.state.timestamp.token) == stage.tokens
    assert rates(trainer) == [stage.lr(stage.tokens - stage.tokens_per_batch)]
    assert capfd.readouterr().out.count('stage_start') == 1


def test_a_resume_goes_on_within_the_stage(names, capfd):
    (code,) = CODE
    half = code.replace("max_duration=f'{stage.tokens}tok'", "max_duration='5ba'")
    assert half != code
    exec(half, names)
    assert int(names['trainer'].state.timestamp.batch) == 5
    exec(code, names)
    trainer = names['trainer']
    stage = make_plan(load('run.yaml')).stages[0]
    assert int(trainer.state.timestamp.token) == stage.tokens
    assert rates(trainer) == [stage.lr(stage.tokens - stage.tokens_per_batch)]
    assert capfd.readouterr().out.count('stage_start') == 1, 'it begins once, and not again after the resume'

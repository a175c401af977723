"""A stage begins once; the rate is a function of the position; the run file wins over the checkpoint."""

import copy
import json

import pytest
import torch
from composer import Event, Logger, State, Timestamp

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.schedule.rewarm import Hyperparameters, Rewarm, apply_optimizer_policy

RUN = """
run_name: unit
run_folder: /nowhere
max_seq_len: 8
global_train_batch_size: 4
device_train_microbatch_size: 4
tokenizer: none
model: {name: pythia-14m, init_from: scratch}
stages:
  - name: first
    max_duration: 10ba
    train: {streams: [{name: old, local: /nowhere/old}]}
    schedule: {name: linear, lr: 1.0e-3, min_lr: 1.0e-4, warmup: 4ba}
  - name: second
    max_duration: 10ba
    train: {streams: [{name: new, local: /nowhere/new}]}
    schedule: {name: linear, lr: 2.0e-3, warmup: 5ba}
    optimizer_state: reset
"""
TOKENS = 32


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / 'run.yaml'
    path.write_text(RUN)
    return make_plan(load(path))


def make_state(batch: int) -> State:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.5, betas=(0.5, 0.6), weight_decay=0.7)
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = State.__new__(State)  # only what an algorithm reads
    state.timestamp = Timestamp(batch=batch, token=batch * TOKENS)
    state._optimizers = [optimizer]
    return state


def make(plan, index, events):
    settings = Hyperparameters(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    return Rewarm(plan.stages[index], hyperparameters=settings, record=lambda event, **f: events.append((event, f)))


def lr_of(algorithm, state, event=Event.BATCH_START):
    algorithm.apply(event, state, Logger.__new__(Logger))
    return state.optimizers[0].param_groups[0]['lr']


def test_first_batch_of_a_new_stage_is_at_the_new_rate_and_not_at_the_old(plan):
    events = []
    first = make(plan, 0, events)
    lr_of(first, make_state(0), Event.AFTER_LOAD)
    assert lr_of(first, make_state(9)) == pytest.approx(1e-3 - 9e-4 * 5 / 6)
    second = make(plan, 1, events)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    state = make_state(10)
    assert lr_of(second, state, Event.AFTER_LOAD) == 0.0
    assert lr_of(second, state) == 0.0
    assert lr_of(second, make_state(12)) == pytest.approx(2e-3 * 2 / 5)
    assert [fields['stage'] for _, fields in events] == ['first', 'second']
    assert events[1][1]['changes']['lr'] == [pytest.approx(2.5e-4), 0.0]
    assert second.lr_before == pytest.approx(2.5e-4)


@pytest.mark.parametrize('batch', range(10, 20))
def test_a_preemption_never_rewarms_again(plan, batch):
    events = []
    unbroken = make(plan, 1, events)
    lr_of(unbroken, make_state(10), Event.AFTER_LOAD)
    expected = lr_of(unbroken, make_state(batch))
    again = make(plan, 1, events)
    again.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    state = make_state(batch)
    before = copy.deepcopy(state.optimizers[0].state_dict()['state'])
    assert lr_of(again, state, Event.AFTER_LOAD) == expected
    assert lr_of(again, state) == expected
    assert len(events) == 1
    torch.testing.assert_close(state.optimizers[0].state_dict()['state'], before)


def test_run_file_wins_over_the_parameter_groups_of_a_checkpoint(plan):
    state = make_state(10)
    lr_of(make(plan, 1, []), state, Event.AFTER_LOAD)
    group = state.optimizers[0].param_groups[0]
    assert (group['betas'], group['eps'], group['weight_decay']) == ((0.9, 0.95), 1e-8, 0.1)
    assert group['initial_lr'] == group['lr'] == 0.0


def test_a_stage_that_begins_tells_which_settings_are_others_now(plan):
    events = []
    first = Rewarm(
        plan.stages[0], hyperparameters=Hyperparameters((0.9, 0.95), 1e-8, 0.1, 1.0), record=lambda *_, **__: None
    )
    lr_of(first, make_state(0), Event.AFTER_LOAD)
    lr_of(first, make_state(9))
    settings = Hyperparameters((0.9, 0.95), 1e-8, 0.2, 0.5)
    second = Rewarm(plan.stages[1], hyperparameters=settings, record=lambda event, **f: events.append(f))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    lr_of(second, make_state(10), Event.AFTER_LOAD)
    changes = events[0]['changes']
    assert (changes['max_grad_norm'], changes['weight_decay']) == ([1.0, 0.5], [0.1, 0.2])
    assert set(changes) == {'lr', 'max_grad_norm', 'weight_decay'}


def test_undecayed_group_stays_undecayed(plan):
    state = make_state(10)
    state.optimizers[0].param_groups[0]['weight_decay'] = 0.0
    lr_of(make(plan, 1, []), state, Event.AFTER_LOAD)
    assert state.optimizers[0].param_groups[0]['weight_decay'] == 0.0


def test_optimizer_policies():
    kept, reset, second = (make_state(0).optimizers[0] for _ in range(3))
    (moments,) = kept.state.values()
    first_moment = moments['exp_avg'].clone()
    apply_optimizer_policy(kept, 'keep')
    assert moments['step'] == 1
    apply_optimizer_policy(reset, 'reset')
    assert not reset.state
    apply_optimizer_policy(second, 'reset_second_moment')
    (moments,) = second.state.values()
    torch.testing.assert_close(moments['exp_avg'], first_moment * (1 - 0.5))
    assert moments['exp_avg_sq'].abs().sum() == 0
    assert moments['step'] == 0


def train_alone(plan, spec, batches: int) -> list[float]:
    """The rates at which Composer's Trainer trains somebody's own model, with nothing of ours but the algorithm."""
    from composer import Callback, Trainer
    from composer.models import ComposerModel

    class Own(ComposerModel):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def forward(self, batch):
            return self.layer(batch[0])

        def loss(self, outputs, batch):
            return (outputs - batch[1]).square().mean()

    class Rates(Callback):
        def __init__(self):
            self.seen: list[float] = []

        def batch_end(self, state, logger):
            self.seen.append(state.optimizers[0].param_groups[0]['lr'])

    model, rates = Own(), Rates()
    Trainer(
        model=model,
        train_dataloader=spec,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1.0),
        max_duration=f'{batches}ba',
        algorithms=[make(plan, 0, [])],
        callbacks=[rates],
        progress_bar=False,
    ).fit()
    return rates.seen


def own_loader():
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(32, 8), torch.ones(32, 1)), batch_size=4
    )


def test_an_own_trainer_whose_batches_count_no_tokens_is_stopped_and_told_what_to_write(plan):
    with pytest.raises(UserError, match='counted no tokens'):
        train_alone(plan, own_loader(), 3)


def test_an_own_trainer_that_counts_tokens_follows_the_curve(plan):
    from composer.core import DataSpec

    spec = DataSpec(own_loader(), get_num_tokens_in_batch=lambda batch: TOKENS)
    assert train_alone(plan, spec, 4) == [plan.stages[0].lr(batch * TOKENS) for batch in range(4)]

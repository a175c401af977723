"""What a run that has begun does not take: a table, the way out, and a command that works; `rewarm plan` says the same."""

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from rewarm.config.changes import identity
from rewarm.config.errors import ConfigError, UserError
from rewarm.config.fates import as_written, fixed_settings, stage_settings
from rewarm.config.load import load
from rewarm.config.past import find_past
from rewarm.config.plan import make_plan
from rewarm.config.refusals import WEIGHTS, refuse_changes
from rewarm.config.settled import settle
from rewarm.config.show import plan_command


def save(
    folder: Path, path: Path, batch: int, *overrides: str, lr_before: float | None = None, weights: str | None = None
) -> Path:
    """A checkpoint of the run file as far as its records go; its tensors are some bytes."""
    config = load(path, overrides)
    plan = make_plan(config, previous_lr=lr_before)
    begun = [stage for stage in plan.stages if stage.start_batch < batch]
    at = folder / 'checkpoints' / f'ba{batch:08d}'
    at.mkdir(parents=True)
    rewarm = {'stage': begun[-1].name, 'start_batch': begun[-1].start_batch, 'lr': 1e-4, 'lr_before': lr_before}
    state = {
        'format': 1,
        'batch': batch,
        'run_name': config.run_name,
        'tokens': batch * plan.tokens_per_batch,
        'lr': plan.lr_at((batch - 1) * plan.tokens_per_batch),
        'settings': {**fixed_settings(config), WEIGHTS: weights},
        'optimizer': stage_settings(config),
        'stages': [
            {'start_batch': stage.start_batch, 'lr_before': lr_before, 'mix': {}, 'identity': identity(stage)} for stage in begun
        ],
        'algorithms': {'Rewarm': {**rewarm, 'start_tokens': 0, 'optimizer': {}}},
        'run_file': as_written(config),
    }  # fmt: skip
    files = {'model.safetensors': b'weights', 'state.json': json.dumps(state).encode()}
    for name, data in files.items():
        (at / name).write_bytes(data)
    about = {n: {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()} for n, data in files.items()}
    (at / 'manifest.json').write_text(json.dumps({'format': 1, 'files': about}))
    return at


@pytest.fixture
def refusal(write_run):
    """What `train` says to overrides of a run that is at batch 20 of 100, in its first stage, or somewhere else."""
    path = write_run()

    def refuse(*overrides: str, at: int = 20, before: tuple[str, ...] = ()) -> str:
        folder = Path('runs/small')
        if not folder.exists():
            save(folder, path, at, *before)
        config = load(path, overrides)
        past = find_past(config.run_folder)
        assert past
        plan = make_plan(config, previous_lr=past.previous_lr)
        try:
            refuse_changes(past, config, plan, ['rewarm', 'train', str(path), *overrides])
        except UserError as error:
            return str(error)
        return ''

    return refuse


def printed_command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith('  rewarm train ')]
    return shlex.split(line)


def test_what_was_not_edited_is_not_refused(refusal):
    assert refusal() == ''
    assert refusal('stages.0.max_duration=3200tok', 'checkpoints.keep=5', 'eval.sets=[]', 'data.num_workers=1') == ''


def test_differences_are_a_table_that_fits_a_terminal(refusal):
    text = refusal('stages.0.schedule.lr=1e-4', 'max_grad_norm=2.0', 'seed=18')
    lines = text.splitlines()
    assert (
        lines[0]
        == 'the run file does not go with runs/small/checkpoints/ba00000020 (batch 20 of the run, 20 of stage `old`):'
    )
    assert lines[2:6] == [
        '  key                   was     now',
        '  seed                  17      18',
        '  stages.0.schedule.lr  0.0003  0.0001',
        '  max_grad_norm         1.0     2.0',
    ]
    assert all(len(line) <= 80 for line in lines[1:] if not line.startswith('  rewarm train'))
    assert '{' not in '\n'.join(lines[:12])


def test_a_lower_rate_in_the_middle_of_a_stage_is_a_fork_whose_command_plans(refusal):
    text = refusal('stages.0.schedule.lr=1e-4')
    assert 'the 80 batches that remain of this one' in text.replace('\n', ' ')
    _, _, path, *overrides = printed_command(text)
    fork = make_plan(load(path, overrides))
    config = load(path, overrides)
    assert config.model.init_from == f'checkpoint:{Path("runs/small/checkpoints/ba00000020").resolve()}'
    assert (config.run_name, config.run_folder) == ('small-from-ba00000020', 'runs/small-from-ba00000020')
    assert [stage.batches for stage in fork.stages] == [80, 200]
    assert fork.stages[0].lr(0) == 1e-4  # its warm-up is behind it
    assert fork.stages[1].schedule == make_plan(load(path)).stages[1].schedule
    assert [stage.optimizer_state for stage in config.stages] == ['keep', 'reset']
    assert config.seed == 18


def test_a_fork_of_a_later_stage_leaves_the_earlier_ones_out_and_keeps_where_it_stops(refusal):
    text = refusal('stages.1.schedule.lr=5e-5', 'stages.1.stop_at=150ba', at=130)
    _, _, path, *overrides = printed_command(text)
    (stage,) = make_plan(load(path, overrides)).stages
    assert (stage.name, stage.batches, stage.budget_batches, stage.schedule['lr']) == ('new', 120, 170, 5e-5)


def test_a_fork_does_not_take_the_name_of_one_that_is_there(refusal):
    Path('runs/small-from-ba00000020').mkdir(parents=True)
    assert 'run_folder="runs/small-from-ba00000020-2"' in printed_command(refusal('seed=18'))


def test_what_no_fork_can_have_prints_none(refusal):
    assert 'rewarm train' not in refusal('model.name=pythia-31m')


def test_an_ended_stage_is_put_back_or_another_one_appended(refusal):
    text = refusal('stages.0.schedule.lr=1e-4', at=130)
    assert 'Stage `old` has ended and cannot be edited: put it back, or append a new stage.' in text
    assert 'rewarm train' not in text


def test_another_batch_size_is_one_difference_and_a_fork_counts_in_its_batches(refusal):
    text = refusal('global_train_batch_size=8')
    assert text.splitlines()[2:5] == ['  key                      was  now', '  global_train_batch_size  4    8', '']
    _, _, path, *overrides = printed_command(text)
    assert [stage.batches for stage in make_plan(load(path, overrides)).stages] == [
        90,
        100,
    ]  # 100 of its own less what is trained


def test_a_stage_that_is_to_end_is_told_of_stop_at(refusal):
    text = ' '.join(refusal('stages.0.max_duration=50ba').split())
    assert 'leave `max_duration` at `100ba` and write `stop_at: 50ba`' in text
    assert refusal('stages.0.stop_at=50ba') == refusal('stages.0.stop_at=20ba') == ''
    assert 'write `stop_at: 20ba` (`640tok`)' in ' '.join(refusal('stages.0.stop_at=10ba').split())


def test_the_optimizer_may_change_where_a_stage_begins_and_within_one_not(refusal):
    text = ' '.join(refusal('optimizer.betas=[0.9, 0.99]', 'max_grad_norm=0.5').split())
    assert 'end stage 0 here (`stages.0.stop_at: 20ba`)' in text
    assert refusal('optimizer.betas=[0.9, 0.99]', 'max_grad_norm=0.5', 'stages.0.stop_at=20ba') == ''


def test_other_starting_weights_are_refused_with_both_named_and_a_way_out(refusal):
    text = refusal('model.init_from=hf:EleutherAI/pythia-14m', before=())
    words = ' '.join(text.split())
    assert 'began with the weights of scratch, and those of hf:EleutherAI/pythia-14m would have no effect' in words
    assert printed_command(text)[3:] == [
        'model.init_from=hf:EleutherAI/pythia-14m', 'run_name=small-2', 'run_folder="runs/small-2"',
    ]  # fmt: skip


def source(name: str, weights: bytes = b'weights') -> Path:
    at = Path(name)
    at.mkdir(parents=True)
    state = json.dumps({'batch': 1, 'lr': 1e-4}).encode()
    for file, data in {'model.safetensors': weights, 'state.json': state}.items():
        (at / file).write_bytes(data)
    about = {f: {'bytes': (at / f).stat().st_size, 'sha256': hashlib.sha256((at / f).read_bytes()).hexdigest()} for f in ('model.safetensors', 'state.json')}  # fmt: skip
    (at / 'manifest.json').write_text(json.dumps({'format': 1, 'files': about}))
    return at


def test_the_same_weights_in_another_place_are_recorded_as_without_effect(write_run):
    path = write_run(('init_from: scratch', 'init_from: checkpoint:here/ba1'))
    here = source('here/ba1')
    sha = hashlib.sha256(b'weights').hexdigest()
    save(Path('runs/small'), path, 20, weights=sha)
    past = find_past('runs/small')
    assert past
    assert past.config
    here.rename('moved')
    for place, refused in (('moved', False), (str(here), False), (f'{Path.cwd()}/here/ba1', False), ('gone', True)):
        config = load(path, [f'model.init_from=checkpoint:{place}'])
        plan = make_plan(config)
        if refused:
            with pytest.raises(UserError, match='would have no effect'):
                refuse_changes(past, config, plan, [])
            continue
        refuse_changes(past, config, plan, [])
        settled = settle(past, config, plan, idle=False)
        assert settled.config.model.init_from == 'checkpoint:here/ba1'
        assert settled.changes == {}
        assert set(settled.without_effect) == ({'model.init_from'} if place != str(here) else set())
    source('other', b'others')
    config = load(path, ['model.init_from=checkpoint:other'])
    with pytest.raises(UserError, match='would have no effect'):
        refuse_changes(past, config, make_plan(config), [])


def test_what_takes_effect_is_told_and_what_ended_stages_were_stays(write_run):
    path = write_run()
    save(Path('runs/small'), path, 130)
    past = find_past('runs/small')
    config = load(
        path, ['checkpoints.keep=9', 'stages.0.train.streams.0.local=elsewhere', 'stages.0.max_duration=3200tok']
    )
    plan = make_plan(config)
    refuse_changes(past, config, plan, [])
    settled = settle(past, config, plan, idle=False)
    assert settled.changes == {'checkpoints.keep': [2, 9]}
    assert settled.without_effect == {
        'stages.old.max_duration': ['100ba', '3200tok'],
        'stages.old.train.streams.old.local': ['data/old', 'elsewhere'],
    }
    assert settled.config.stages[0] == load(path).stages[0]
    assert str(settled).startswith(
        'Changed since the newest checkpoint: `checkpoints.keep` 2 -> 9.\nChanged without effect: '
    )


def test_nothing_takes_effect_in_a_run_with_nothing_left_to_do(write_run):
    path = write_run()
    save(Path('runs/small'), path, 300)
    config = load(path, ['checkpoints.keep=9'])
    settled = settle(find_past('runs/small'), config, make_plan(config), idle=True)
    assert (settled.changes, settled.without_effect) == ({}, {'checkpoints.keep': [2, 9]})
    assert settled.config.checkpoints.keep == 2


def test_the_plan_refuses_what_train_would_and_says_where_the_run_is(write_run, capsys):
    path = write_run()
    save(Path('runs/small'), path, 130)
    plan_command(path)
    assert 'ba00000130 is its newest checkpoint, batch 130 of the run, 30 of stage `new`' in capsys.readouterr().out
    plan_command(path, as_json=True)
    assert json.loads(capsys.readouterr().out)['begun']['batch'] == 130
    with pytest.raises(UserError, match='Stage `old` has ended'):
        plan_command(path, ['stages.0.schedule.lr=1e-4'])


CURRENT = ('{name: cosine, lr: 3e-4, min_lr: 3e-5, warmup: 10ba}', '{name: linear, lr: current}')
FORK = ('init_from: scratch', 'init_from: checkpoint:here/ba1')


@pytest.mark.parametrize('damaged', [False, True])
def test_a_fork_goes_on_after_its_source_is_gone(write_run, damaged):
    path = write_run(CURRENT, FORK)
    here = source('here/ba1')
    save(Path('runs/small'), path, 20, lr_before=1e-4)
    (here / 'state.json').unlink()
    if not damaged:
        here.rename('moved')
    config = load(path)
    past = find_past(config.run_folder)
    assert past
    plan = make_plan(config, previous_lr=past.previous_lr)
    assert plan.stages[0].lr(0) == 1e-4
    refuse_changes(past, config, plan, [])


def test_a_fork_that_has_not_begun_says_that_its_source_is_missing(write_run):
    path = write_run(CURRENT, FORK)
    with pytest.raises(ConfigError) as caught:
        make_plan(load(path))
    assert 'the checkpoint here/ba1 is not on this machine' in str(caught.value)
    assert 'Bring it back, or name the place where it is now' in str(caught.value)
    assert 'Write the rate as a number' not in str(caught.value)

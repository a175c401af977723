"""A request becomes a file that `rewarm plan` accepts, or nothing."""

import re
from fractions import Fraction

import pytest

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.config.source import read_source
from rewarm.new.answers import Answers
from rewarm.new.request import CURVES
from rewarm.new.text import quoted
from rewarm.new.write import draft, publish
from tests.end_to_end.conftest import ROOT


def write(here, source, **answers):
    given = Answers(**{'name': 'law', 'data': ['data/law'], 'model': f'checkpoint:{source}', **answers})
    ready = draft(given.request())
    path = here / f'{given.name}.yaml'
    publish(ready, path)
    return load(path, world_size=given.gpus or 1), ready


def test_one_pass_over_new_data_with_replay_and_both_validation_sets(here, run_folder):
    config, ready = write(here, run_folder, replay=['old=data/old:25%'])
    (stage,) = config.stages
    assert [(s.name, s.local, s.share) for s in stage.train.streams] == [
        ('law', 'data/law/train', Fraction(3, 4)),
        ('old', 'data/old', Fraction(1, 4)),
    ]
    assert [(s.name, s.local, s.role) for s in config.eval.sets] == [
        ('old', 'data/old-val', 'upstream'),
        ('law', 'data/law/val', 'downstream'),
    ]
    assert (config.max_seq_len, config.tokenizer, config.precision) == (32, 'data/tokenizer.json', 'fp32')
    samples = ready.choices.streams[0].part.samples
    trained = make_plan(config).batches * config.global_train_batch_size * Fraction(3, 4)
    assert samples - config.global_train_batch_size < trained <= samples, 'one pass, rounded down to whole steps'
    assert ready.notes == ()


def test_the_file_has_the_keys_of_the_example_in_its_order_and_says_what_they_are_for(here, run_folder):
    write(here, run_folder, replay=['old=data/old'])
    ours, example = read_source(here / 'law.yaml').data, read_source(ROOT / 'yamls/pythia-410m/rewarm.yaml').data
    assert list(ours) == list(example)
    for section in ('data', 'optimizer', 'eval', 'checkpoints', 'preemption'):
        assert list(ours[section]) == list(example[section])
    assert list(ours['stages'][0]) == list(example['stages'][0])
    assert list(ours['stages'][0]['schedule']) == list(example['stages'][0]['schedule'])
    text = (here / 'law.yaml').read_text()
    assert len(re.findall('# .{20}', text)) > 20


@pytest.mark.parametrize('curve', CURVES)
def test_every_curve_plans(here, run_folder, curve):
    config, _ = write(here, run_folder, curve=curve, budget='40ba', lr=1.25e-4)
    assert (config.stages[0].schedule.name, config.stages[0].schedule.lr) == (curve, 1.25e-4)
    assert make_plan(config).batches == 40


def test_several_new_datasets_are_mixed_by_size_in_what_replay_leaves(here, run_folder):
    config, ready = write(here, run_folder, data=['data/law', 'data/new'], replay=['data/old:0.1'])
    law, new, old = config.stages[0].train.streams
    assert law.share + new.share == Fraction(9, 10)
    sizes = [stream.part.samples for stream in ready.choices.streams[:2]]
    assert float(law.share / new.share) == pytest.approx(sizes[0] / sizes[1], rel=0.01)
    assert old.share == Fraction(1, 10)


@pytest.mark.parametrize('gpus', [1, 2, 3, 7])
def test_the_batch_divides_among_the_gpus(here, run_folder, gpus):
    config, _ = write(here, run_folder, gpus=gpus)
    assert gpus in make_plan(config, gpus=gpus).world_sizes
    assert f'composer -n {gpus} -m rewarm train law.yaml' in (here / 'law.yaml').read_text()


def test_of_published_weights_the_size_decides(here):
    ready = draft(Answers('big', data=['data/law'], model='pythia-410m', budget='10Btok').request())
    assert ready.choices.tokens_per_batch == 1 << 21
    text = ready.text
    assert 'name: pythia-410m ' in text
    assert 'init_from: hf:EleutherAI/pythia-410m ' in text
    assert 'max_duration: 10e9tok ' in text
    assert 'hidden_size' not in text
    assert any('tokenizer could not be compared' in note for note in ready.notes)
    assert any('forgetting will not be measured' in note for note in ready.notes)


@pytest.mark.parametrize(
    ('answers', 'words'),
    [
        ({'data': ['data/nowhere']}, 'there is no such folder'),
        ({'replay': ['law=data/old:0.1']}, 'two datasets are called law'),
        ({'replay': ['data/old:0.6', 'data/new:0.4']}, 'leave nothing for the new data'),
        ({'global_batch_size': 7, 'gpus': 2}, 'global_train_batch_size'),
        ({'curve': 'cosin'}, 'Did you mean `cosine`'),
        ({'lr': 0.0}, 'a learning rate is above 0'),
        ({'lr': float('nan')}, 'a learning rate is above 0'),
        ({'seq_len': 64}, r'`max_seq_len` is 64, but the data .* 32'),
        ({'run_folder': 's3://bucket'}, 'no place for a run'),
        ({'run_folder': ''}, 'run_folder'),
        ({'tokenizer': 'other.json'}, 'made with another tokenizer'),
        ({'name': '../law'}, 'letters, digits'),
    ],
)
def test_what_cannot_be_planned_is_said_and_nothing_is_written(here, run_folder, answers, words):
    (here / 'other.json').write_text('{"model": {"vocab": {"a": 0}}}')
    before = sorted(here.iterdir())
    with pytest.raises(UserError, match=words):
        write(here, run_folder, **answers)
    assert sorted(here.iterdir()) == before


def test_a_file_that_is_there_is_replaced_only_if_asked(here, run_folder):
    _, ready = write(here, run_folder)
    path = here / 'law.yaml'
    path.write_text('mine')
    with pytest.raises(UserError, match='is left as it is'):
        publish(ready, path)
    assert path.read_text() == 'mine'
    publish(ready, path, force=True)
    assert path.read_text() == ready.text
    assert not list(here.glob('.writing*'))


def test_a_link_is_never_written_through(here, run_folder):
    _, ready = write(here, run_folder)
    (here / 'other.yaml').symlink_to(here / 'elsewhere')
    with pytest.raises(UserError, match='is left as it is'):
        publish(ready, here / 'other.yaml')
    publish(ready, here / 'other.yaml', force=True)
    assert not (here / 'elsewhere').exists()


@pytest.mark.parametrize(
    'name', ['a # b', "it's", 'a: b', 'a, b', '{a}', '[x', '&a', 'null', '1e3', 'ü', '%x', 'a\\b', '- a', 'x:']
)
def test_a_folder_of_any_name_is_quoted_as_yaml_needs(here, run_folder, name):
    (here / name).symlink_to(here / 'data/law')
    config, _ = write(here, run_folder, data=[f'law={name}'])
    assert config.stages[0].train.streams[0].local == f'{name}/train'


def test_a_variable_of_the_run_file_in_a_path_is_not_taken_for_a_folder(here, run_folder):
    (here / '${seed}').symlink_to(here / 'data/law')
    with pytest.raises(UserError, match=r'\$'):
        write(here, run_folder, data=['law=${seed}'])


def test_texts_that_yaml_reads_as_something_else_are_quoted():
    assert [quoted(text) for text in ('data/law', 's3://b/x', '~/x', './x', 'runs/${run_name}')] == [
        'data/law',
        's3://b/x',
        '~/x',
        './x',
        'runs/${run_name}',
    ]
    assert [quoted(text) for text in ('true', '.5', '1.0', '~', "a'b")] == ["'true'", "'.5'", "'1.0'", "'~'", "'a''b'"]

from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import ValidationError

from rewarm.config.duration import Duration
from rewarm.config.errors import ConfigError, UserError
from rewarm.config.load import dump, load


def test_a_run_file_becomes_settings(write_run):
    config = load(write_run())
    assert config.run_folder == 'runs/small'
    assert config.optimizer.eps == 1e-8  # YAML 1.1 readers make a string of it
    assert config.stages[0].schedule.lr == 3e-4
    assert config.stages[1].max_duration == Duration(6400, 'tok')
    assert [stream.share for stream in config.stages[1].train.streams] == [Fraction(19, 20), Fraction(1, 20)]
    assert config.model.shape.hidden_size == 128
    assert config.seed == 17


def test_settings_are_frozen(write_run):
    config = load(write_run())
    with pytest.raises(ValidationError):
        config.seed = 3
    with pytest.raises(ValidationError):
        config.stages[0].schedule.lr = 1.0


def test_dumped_settings_load_as_equal(write_run):
    path = write_run(('proportion: 0.95', 'proportion: 19/20'), ('warmup: 1%', 'warmup: 0.5%'))
    config = load(path, ['stages.1.schedule.lr=current'])
    Path('again.yaml').write_text(dump(config))
    assert load('again.yaml') == config
    assert dump(load('again.yaml')) == dump(config)


def test_dumped_settings_hold_no_secret_and_load(write_run):
    given = '{neptune: {api_token: hunter2, project: p}, mlflow: {tracking_uri: "https://me:hunter2@host/x"}}'
    text = dump(load(write_run(('{tensorboard: {}}', given))))
    assert 'hunter2' not in text
    Path('again.yaml').write_text(text)
    assert load('again.yaml').loggers['neptune'] == {'api_token': 'REDACTED', 'project': 'p'}


def test_unknown_key(problems_of):
    assert problems_of(('eps: 1e-8', 'beta: 1')) == (
        'run.yaml:10: unknown key `optimizer.beta`. Did you mean `betas`? Known keys here: betas, eps, name, weight_decay',
    )


def test_unknown_key_of_a_curve_names_the_keys_of_that_curve(problems_of):
    (problem,) = problems_of(('warmup: 1%', 'min_lr: 0.0'))
    assert problem.startswith(
        'run.yaml:27: unknown key `stages.1.schedule.min_lr`. It belongs to linear, cosine, neox_clipped_cosine,'
    )
    assert problem.endswith('Known keys here: lr, name, warmup, warmup_from')


def test_a_key_in_the_wrong_place_is_pointed_to_the_right_one(problems_of):
    (problem,) = problems_of(('eps: 1e-8', 'lr: 1e-3'))
    assert 'unknown key `optimizer.lr`. There is `stages.0.schedule.lr`.' in problem


@pytest.mark.parametrize(
    ('old', 'new', 'problem'),
    [
        ('max_seq_len: 8', 'max_seq_len: 2k', "run.yaml:3: `max_seq_len` must be an integer, got '2k'"),
        ('max_seq_len: 8', 'max_seq_len: true', 'run.yaml:3: `max_seq_len` must be an integer, got True'),
        ('max_seq_len: 8', 'max_seq_len: 8.0', 'run.yaml:3: `max_seq_len` must be an integer, got 8.0'),
        ('max_seq_len: 8', 'max_seq_len: 0', 'run.yaml:3: `max_seq_len` must be above 0, got 0'),
        ('tokenizer: tokenizer.json', 'tokenizer: 3', 'run.yaml:6: `tokenizer` must be text, got 3. Put it in quotes'),
        ('run_name: small', 'run_name: a/b', 'run.yaml:1: `run_name` must be letters, digits'),
        ('init_from: scratch', 'init_from: pythia', 'run.yaml:7: `model.init_from` must be `hf:<id or folder>`'),
        (
            'name: cosine',
            'name: cosin',
            'run.yaml:17: `stages.0.schedule.name` must be one of constant, linear, cosine',
        ),
        ('name: cosine, ', '', 'run.yaml:17: `stages.0.schedule` needs a `name`, one of constant'),
        ('lr: 3e-4', 'lr: true', 'run.yaml:17: `stages.0.schedule.lr` must be a learning rate above 0'),
        ('lr: 3e-4', 'lr: .inf', 'run.yaml:17: `stages.0.schedule.lr` must be a learning rate above 0'),
        ('min_lr: 3e-5', 'min_lr: -1', 'run.yaml:17: `stages.0.schedule.min_lr` must be at least 0, got -1'),
        ('warmup: 10ba', 'warmup: 10', 'run.yaml:17: `stages.0.schedule.warmup` must be a duration with its unit'),
        ('warmup: 10ba', 'warmup: 0.1dur', 'run.yaml:17: `stages.0.schedule.warmup` must not use `dur`'),
        ('[0.9, 0.95]', '[0.9, 1.5]', 'run.yaml:9: `optimizer.betas.1` must be below 1, got 1.5'),
        ('[0.9, 0.95]', '[0.9]', 'run.yaml:9: `optimizer.betas.1` is missing'),
        (
            'proportion: 0.05',
            'proportion: a lot',
            'run.yaml:23: `stages.1.train.streams.1.proportion` must be a share above 0',
        ),
        (
            'proportion: 0.05',
            'proportion: 1/0',
            'run.yaml:23: `stages.1.train.streams.1.proportion` must be a share above 0',
        ),
        ('role: upstream', 'role: up', "run.yaml:32: `eval.sets.0.role` must be one of upstream, downstream, got 'up'"),
        (
            '{tensorboard: {}}',
            '{tensorboard: }',
            'run.yaml:34: `loggers.tensorboard` must be a group of keys, `{}` when',
        ),
        (
            'loggers:',
            'preemption: {notice: amazon}\nloggers:',
            "run.yaml:34: `preemption.notice` must be one of auto, aws, gcp, azure, none, got 'amazon'",
        ),
        (
            'loggers:',
            "preemption: {notice_url: 'ftp://host'}\nloggers:",
            'run.yaml:34: `preemption.notice_url` must be `http://<host>` or `http://<host>:<port>`, without a path',
        ),
        (
            'loggers:',
            "preemption: {notice: aws, notice_url: 'http://host/latest'}\nloggers:",
            'run.yaml:34: `preemption.notice_url` must be `http://<host>` or',
        ),
        (
            'loggers:',
            "preemption: {notice: none, notice_url: 'http://host'}\nloggers:",
            'run.yaml:34: `preemption`: `notice_url` is not asked with `notice: none`. Remove it, or write `notice: auto`',
        ),
        ('{tensorboard: {}}', '{wnadb: {}}', 'run.yaml:34: unknown logger `wnadb`. Did you mean `wandb`?'),
        (
            '{tensorboard: {}}',
            '{wandb: {projct: x}}',
            'run.yaml:34: unknown key `loggers.wandb.projct`. Did you mean `project`?',
        ),
    ],
)
def test_wrong_values_name_line_key_and_what_to_write(problems_of, old, new, problem):
    (found,) = problems_of((old, new))
    assert found.startswith(problem)


def test_a_choice_is_suggested(problems_of):
    (problem,) = problems_of(('name: cosine', 'name: cosin'))
    assert problem.endswith("got 'cosin'. Did you mean `cosine`?")


def test_a_missing_key_says_what_it_is_for(problems_of):
    (problem,) = problems_of(('tokenizer: tokenizer.json\n', ''))
    assert problem.startswith('run.yaml:1: `tokenizer` is missing: The tokenizer of all data')


def test_a_misspelt_required_key_is_one_problem_not_two(problems_of):
    (problem,) = problems_of(('max_seq_len', 'max_seqlen'))
    assert 'Did you mean `max_seq_len`?' in problem


def test_a_key_set_twice_is_refused(problems_of):
    assert problems_of(('max_seq_len: 8', 'max_seq_len: 8\nmax_seq_len: 16')) == (
        'run.yaml:4: `max_seq_len` is set twice, first on line 3. Remove one',
    )


def test_all_problems_are_shown_at_once_in_the_order_of_their_lines(problems_of):
    problems = problems_of(
        ('run_name: small', 'run_name: small\nrun_name: big'),
        ('eps: 1e-8', 'beta: 1'),
        ('lr: 3e-4, min_lr: 3e-5', 'lr: 3e-4, min_lr: 3e-3'),
        ('optimizer_state: reset', 'optimizer_state: rest'),
    )
    assert [problem.split(':')[1] for problem in problems] == ['2', '11', '18', '29']
    assert 'is above `lr`' in problems[2]  # a check between settings, found beside the wrong ones


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('', 'run.yaml:1: the file is empty'),
        ('- 1', 'run.yaml:1: the file must be keys and values'),
        ('a: 1\nb: [1', 'run.yaml:2: not valid YAML'),
        ('\ta: 1', 'run.yaml:1: not valid YAML'),
        ('a: *b', 'run.yaml:1: not valid YAML'),
    ],
)
def test_what_is_not_a_run_file(write_run, text, problem):
    with pytest.raises(ConfigError) as error:
        load(write_run(text=text))
    assert str(error.value).startswith(problem)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='there is no such file'):
        load(tmp_path / 'none.yaml')


def test_an_alias_inside_itself_is_refused(write_run):
    with pytest.raises(ConfigError, match='contains itself'):
        load(write_run(text='a: &x [*x]'))


def test_tags_of_python_are_refused(problems_of):
    assert any('has the tag' in problem for problem in problems_of(('max_seq_len: 8', 'max_seq_len: !!python/name 8')))


def test_overrides_are_read_as_yaml(write_run):
    config = load(
        write_run(),
        ['stages.0.schedule.lr=1e-3', 'seed=3', 'stages.1.train.streams=[{name: x, local: x}]', 'data.num_workers=0'],
    )
    assert (config.stages[0].schedule.lr, config.seed, config.data.num_workers) == (1e-3, 3, 0)
    assert [stream.name for stream in config.stages[1].train.streams] == ['x']


def test_an_override_can_pick_another_curve(write_run):
    config = load(write_run(), ['stages.0.schedule={name: wsd, lr: 1e-3, decay: 20%}'])
    assert config.stages[0].schedule.name == 'wsd'


@pytest.mark.parametrize(
    ('override', 'problem'),
    [
        ('optimizer.wieght_decay=0', 'unknown key `optimizer.wieght_decay`. Did you mean `weight_decay`?'),
        ('stages.2.name=x', '`stages.2`: `stages` is a list with positions 0 to 1'),
        ('stages.x=1', '`stages.x`: `stages` is a list with positions 0 to 1'),
        ('seed.x=1', '`seed.x`: `seed` has no keys'),
        ('seed', '`seed` is not an override. Write `key=value`'),
        ('=1', '`=1` is not an override. Write `key=value`'),
        ('seed=[', 'not valid YAML'),
        ('seed=yes', "`seed` must be an integer, got 'yes'"),
        ('stages.0.schedule.lr=', '`stages.0.schedule.lr` must be a learning rate above 0'),
        ('global_train_batch_size=5', '`global_train_batch_size` 5 is not a multiple'),
        ('run_folder=${nope}', '`run_folder`: `${nope}` must name a top-level key'),
    ],
)
def test_wrong_overrides_say_command_line(write_run, override, problem):
    text = None
    try:
        load(write_run(('max_seq_len: 8', 'max_seq_len: 8\nseed: 1')), [override])
    except ConfigError as error:
        text = error.problems
    assert text is not None
    assert any(line.startswith(f'command line: {problem}') for line in text), text


def test_an_untouched_neighbour_of_an_override_keeps_its_line(problems_of):
    problems = problems_of(('warmup: 10ba', 'warmup: 5'), overrides=('stages.0.schedule.min_lr=x',))
    assert [problem.split(' ')[0] for problem in problems] == ['run.yaml:17:', 'command']


def test_references_name_top_level_keys_only(problems_of):
    (problem,) = problems_of(('runs/${run_name}', 'runs/${model.name}'))
    assert problem.startswith('run.yaml:2: `run_folder`: `${model.name}` must name a top-level key with a plain value')
    (problem,) = problems_of(('runs/${run_name}', '${run_folder}'))
    assert problem.startswith('run.yaml:2: `run_folder`: `${run_folder}` must name')


def test_custom_sizes(write_run, problems_of):
    model = 'model: {name: custom, init_from: scratch, hidden_size: 96, num_hidden_layers: 2, num_attention_heads: 3}'
    shape = load(write_run(('model: {name: pythia-14m, init_from: scratch}', model))).model.shape
    assert (shape.intermediate_size, shape.vocab_size, shape.rotary_pct) == (384, 50304, 0.25)
    (problem,) = problems_of(('name: pythia-14m', 'name: custom'))
    assert '`name: custom` needs `hidden_size`, `num_hidden_layers`, `num_attention_heads`' in problem
    (problem,) = problems_of(('name: pythia-14m', 'name: pythia-14m, hidden_size: 3'))
    assert '`hidden_size` belongs to `name: custom`' in problem
    (problem,) = problems_of(('model: {name: pythia-14m, init_from: scratch}', model.replace('96', '97')))
    assert '`hidden_size` 97 must be a multiple of `num_attention_heads` 3' in problem

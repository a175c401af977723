import pytest

from rewarm.config.load import load


@pytest.mark.parametrize(
    ('override', 'problem'),
    [
        ('seed=4294967296', '`seed` must be below 4,294,967,296'),
        ('seed=4294967295', '`seed` must be at most 4,294,967,294, got 4,294,967,295: Composer adds the rank'),
        ('data.num_workers=100000', '`data.num_workers` must be at most 256'),
        ('data.num_workers=1000000000000', '`data.num_workers` must be at most 256'),
        ('checkpoints.keep=18446744073709551616', '`checkpoints.keep` must be at most 1,000,000'),
        ('checkpoints.interval=0.000001sec', '`checkpoints.interval` must be at least `1sec`'),
        ('preemption.hang_timeout=1e15h', '`preemption.hang_timeout` must be at most `720h`'),
        ('preemption.hang_timeout=0.1sec', '`preemption.hang_timeout` must be at least `1sec`'),
        ('preemption.grace_period=721h', '`preemption.grace_period` must be at most `720h`'),
        ('stages.0.max_duration=9e18ba', '`stages.0.max_duration`: with it the run has'),
        ('stages.1.max_duration=9223372036854775807tok', '`stages.1.max_duration`: with it the run has'),
        ('max_seq_len=1000000000000', '`max_seq_len` must be below 2,147,483,648'),
        ('stages.0.schedule.lr=1e9', '`stages.0.schedule.lr` must be a learning rate above 0 and at most 1e6'),
        ('optimizer.eps=1e9', '`optimizer.eps` must be at most 1'),
        ('optimizer.weight_decay=1e30', '`optimizer.weight_decay` must be at most 1000, got 1e+30'),
        (
            'stages.0.train.streams.0.local=s3://b/x',
            '`stages.0.train.streams.0.local` is a folder on this machine, got s3://b/x. Write `remote: s3://b/x`',
        ),
        ('eval.sets.0.local=gs://b/x', '`eval.sets.0.local` is a folder on this machine'),
        (
            'eval.sets.0.local=file:///etc',
            '`eval.sets.0.local` is a folder on this machine, got file:///etc. Write the path alone: /etc',
        ),
        ('eval.sets.0.remote=file:///etc', '`eval.sets.0.remote`: shards cannot come from file:///etc'),
        ('eval.sets.0.remote=s3://', '`eval.sets.0.remote`: s3:// names no bucket. Write `s3://bucket/prefix`'),
        ('tokenizer=s3://b/tokenizer.json', '`tokenizer` is a file or folder on this machine'),
        (
            'model.init_from=hf:https://huggingface.co/x/y',
            '`model.init_from`: https://huggingface.co/x/y is not on this machine',
        ),
        (
            'model.init_from=checkpoint:https://b/run/checkpoints/ba1',
            '`model.init_from`: https://b/run/checkpoints/ba1 is not',
        ),
        (
            'loggers.tensorboard.flush_interval=0',
            '`loggers.tensorboard.flush_interval` must be a whole number above 0, got 0',
        ),
        ('loggers.tensorboard.flush_interval=x', '`loggers.tensorboard.flush_interval` must be a whole number above 0'),
        ('loggers.file.buffer_size=-1', '`loggers.file.buffer_size` must be a whole number above 0, got -1'),
        ('stages.0.train.streams.0.proportion="1e-99999999"', '`stages.0.train.streams.0.proportion` must be a share'),
        (
            'stages.0.train.streams.0.proportion="1/99999999999999"',
            '`stages.0.train.streams.0.proportion` must be a share',
        ),
        ('preemption={notice_url: "http://me:hunter2@host"}', '`preemption.notice_url` must be `http://<host>`'),
    ],
)
def test_what_cannot_be_run_is_refused(problems_of, override, problem):
    problems = problems_of(overrides=(override,))
    assert any(line.startswith(f'command line: {problem}') for line in problems), problems


def test_a_seed_is_refused_in_its_line(problems_of):
    assert problems_of(('max_seq_len: 8', 'max_seq_len: 8\nseed: 4294967296')) == (
        'run.yaml:4: `seed` must be below 4,294,967,296, got 4294967296',
    )


def test_the_largest_seed_that_every_rank_can_take(write_run):
    assert load(write_run(), ['seed=4294967294']).seed == 2**32 - 2  # two ranks: seed + 1 is the largest of 32 bits

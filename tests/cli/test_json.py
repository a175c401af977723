"""``--json``: JSON and nothing else on standard output; a mistake is told on standard error, with the same exit code."""

import json

import pytest

from tests.report.story import Story
from tests.resume.mirrored import Run, name

RUN_FILE = """
run_name: law
run_folder: {folder}/runs/law
max_seq_len: 2048
global_train_batch_size: 64
device_train_microbatch_size: 4
tokenizer: {folder}/tokenizer.json
model: {{name: pythia-14m, init_from: scratch}}
stages:
  - name: law
    max_duration: 100ba
    train: {{streams: [{{name: law, local: {folder}/data}}]}}
    schedule: {{name: constant, lr: 1.0e-4}}
checkpoints: {{interval: 10ba, keep: 2}}
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / 'run.yaml'
    path.write_text(RUN_FILE.format(folder=tmp_path))
    return path


@pytest.fixture
def run(tmp_path):
    return Story(tmp_path / 'runs/law').start().train(9).preempt().write()


def test_ranks(rewarm, run_file):
    said = rewarm('ranks', run_file, '--available', 12, '--json')
    content = json.loads(said.out)
    assert said.err == ''
    assert (content['ranks'], content['available'], content['gpus_per_node']) == (8, 12, 1)
    assert content['why'] in rewarm('ranks', run_file, '--available', 12).err
    assert json.loads(rewarm('ranks', run_file, '--available', 8, '--json').out)['why'] is None


def test_plan_status_runs_report_and_pin(rewarm, run_file, run, tmp_path):
    for arguments in (
        ('plan', run_file),
        ('status', run),
        ('runs', run.parent),
        ('report', run, '--out', tmp_path / 'page.html'),
        ('pin', run, 'latest'),
        ('pin', run),
    ):
        said = rewarm(*arguments, '--json')
        assert said.code == 0, said.err
        assert json.loads(said.out)


def test_verify_and_the_same_exit_code_for_what_is_damaged(rewarm, tmp_path):
    run = Run(tmp_path / 'run')
    run.train(1)
    said = rewarm('verify', run.root / name(1), '--json')
    assert said.code == 0, said.err
    checked = {'place': str(run.root / name(1)), 'complete': True, 'problems': [], 'note': None}
    assert json.loads(said.out) == {'complete': True, 'checked': [checked]}
    (run.root / name(1) / 'model.safetensors').write_bytes(b'')
    said = rewarm('verify', run.root / name(1), '--json')
    assert said.code == 2
    assert 'model.safetensors' in said.err
    content = json.loads(said.out)
    assert content['complete'] is False
    assert 'model.safetensors has 0 bytes' in content['checked'][0]['problems'][0]


def test_a_mistake_leaves_standard_output_empty(rewarm, run_file, run, tmp_path):
    for arguments in (
        ('plan', tmp_path / 'none.yaml'),
        ('ranks', run_file, '--available', 3, '--gpus-per-node', 7),
        ('status', tmp_path),
        ('runs', tmp_path / 'none'),
        ('report', tmp_path),
        ('pin', run, 77),
        ('status', run, '--every', 0),
        ('verify', tmp_path / 'none'),
        ('export', tmp_path / 'none', tmp_path / 'out'),
        ('import', tmp_path / 'none', tmp_path / 'out'),
        ('convert', tmp_path / 'none.jsonl', tmp_path / 'out', '--tokenizer', tmp_path, '--seq-len', 8),
    ):
        said = rewarm(*arguments, '--json')
        assert (said.code, said.out) == (2, ''), arguments
        assert said.err, arguments
        assert 'Traceback' not in said.err


def test_convert(rewarm, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(['<|endoftext|>', *'abcdefgh'])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='a'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'text.jsonl').write_text(json.dumps({'text': 'a b c d e f g h ' * 9}) + '\n')
    call = ('convert', tmp_path / 'text.jsonl', tmp_path / 'out', '--tokenizer', tmp_path / 'tokenizer.json')
    call += ('--seq-len', 8, '--eod', '<|endoftext|>', '--workers', 1, '--no-progress', '--json')
    said = rewarm(*call)
    assert said.code == 0, said.err
    content = json.loads(said.out)
    assert (content['out'], content['already_done']) == (str(tmp_path / 'out'), False)
    assert content['cards']['all']['tokens'] == 73
    assert 'encoder' in said.err
    assert json.loads(rewarm(*call).out)['already_done'] is True

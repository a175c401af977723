import json

import pytest

from tests.buckets.servers import BUCKET, S3Server
from tests.resume.mirrored import URL, Run, name


@pytest.fixture
def run(tmp_path):
    """A run folder with two checkpoints; its mirror is not started."""
    run = Run(tmp_path / 'run')
    run.train(1)
    run.train(2)
    return run


def test_pins_are_set_listed_and_taken_away(rewarm, run):
    assert rewarm('pin', run.folder).out == f'No checkpoint of {run.folder} is pinned.\n'
    assert rewarm('pin', run.folder, 'latest').out == f'ba00000002 of {run.folder} is pinned: no run deletes it.\n'
    rewarm('pin', run.folder, '1')
    assert rewarm('pin', run.folder).out == 'ba00000001\nba00000002\n'
    assert json.loads(rewarm('pin', run.folder, '2ba', '--remove', '--json').out) == {
        'run_folder': str(run.folder),
        'checkpoint': 'ba00000002',
        'pinned': ['ba00000001'],
    }


def test_mistakes_are_told_with_what_to_write(rewarm, run):
    for arguments, words in {
        (run.folder, '7'): 'ba00000007 is not there',
        (run.folder, '--remove'): 'name the checkpoint too',
        (run.folder.parent, '1'): 'not a run folder',
        (run.root / name(1),): f'rewarm pin {run.folder} ba00000001',
    }.items():
        said = rewarm('pin', *arguments, '--json')
        assert (said.code, said.out) == (2, '')
        assert words in said.err


def test_a_pin_on_the_disk_of_a_run_in_a_bucket_is_one_in_the_bucket_too(rewarm, tmp_path, monkeypatch):
    server = S3Server(tmp_path / 's3')
    for key, value in server.variables.items():
        monkeypatch.setenv(key, value)
    run = Run(tmp_path / 'run')
    run.train(1)
    run.train(2)
    try:
        (run.folder / 'config.yaml').write_text(f'run_folder: {URL}\n')
        run.mirror.start()
        run.mirror.publish(name(1), keep=3, stage_ends=())
        assert run.mirror.flush(30)
        assert rewarm('pin', run.folder, 1).code == rewarm('pin', run.folder, 2).code == 0
        assert rewarm('pin', URL).out == 'ba00000001\n'  # the other has no copy there yet
        assert rewarm('pin', run.folder, 1, '--remove').code == 0
        assert rewarm('pin', URL).out == f'No checkpoint of {URL} is pinned.\n'
        assert rewarm('pin', URL, 1).code == 0
        assert (server.folder / BUCKET / 'runs/tiny/checkpoints/ba00000001/pinned').exists()
        assert rewarm('pin', f's3://{BUCKET}/elsewhere', 'latest').code == 2
    finally:
        run.mirror.close()
        server.stop()

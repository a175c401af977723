import os
import shutil
from pathlib import Path

from rewarm.config.goodput import Conditions
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.config.saving import find_disk_warning


def warnings(path, *overrides, gpus=None, **known):
    return make_plan(load(path, overrides), gpus=gpus, conditions=Conditions(**known)).warnings


def test_a_save_that_fits_is_no_warning(write_run):
    assert warnings(write_run(), save_seconds=24.9) == ()
    assert warnings(write_run()) == ()  # 169 MB at the assumed speed


def test_a_save_longer_than_the_grace_period_is_named_with_what_to_write(write_run):
    (warning,) = warnings(write_run(), save_seconds=38.2)
    assert 'a whole save takes about 38.2 s and `preemption.grace_period` is 25sec' in warning
    assert '`preemption.grace_period: 40sec`' in warning
    assert warnings(write_run(), 'preemption.grace_period=40sec', save_seconds=38.2)[0].startswith('`preemption.grace')


def test_the_batch_under_way_is_part_of_the_grace_period(write_run):
    (warning,) = warnings(write_run(), save_seconds=20, tokens_per_second=4)  # 8 s for 32 tokens
    assert 'finishing a batch and a whole save take about 28 s' in warning
    assert '`preemption.grace_period: 30sec`' in warning
    assert warnings(write_run(), save_seconds=20, tokens_per_second=4, gpus=2) == ()


def test_saves_that_would_overlap(write_run):
    (warning,) = warnings(write_run(), 'checkpoints.interval=10sec', save_seconds=12)
    assert '`checkpoints.interval` 10sec is 10 s and a whole save takes about 12 s' in warning
    assert '`checkpoints.interval: 15sec`' in warning
    (warning,) = warnings(write_run(), save_seconds=12, tokens_per_second=64)  # 20 batches of 0.5 s
    assert '`checkpoints.interval` 20ba is 10 s' in warning
    assert warnings(write_run(), 'checkpoints.interval=10sec', save_seconds=10) == ()


def test_a_disk_too_small_for_what_is_kept_and_one_more(write_run, tmp_path):
    config = load(write_run(), ['checkpoints.keep=5'])
    free = shutil.disk_usage(tmp_path).free
    assert find_disk_warning(config, free // 10, 6) is None
    warning = str(find_disk_warning(config, int(free / 4.5), 6))
    assert f'6 checkpoints and one being written take {7 * free / 4.5 / 1e9:,.3g} GB' in warning
    assert f'the disk of {tmp_path} on this machine' in warning  # the nearest folder above the run folder that is there
    assert 'write `checkpoints.keep: 2`' in warning  # with the end of a stage and one being written: 4
    assert str(find_disk_warning(config, free * 2, 6)).endswith(': use a larger disk')


def test_checkpoints_that_are_there_already_have_their_room(write_run, tmp_path):
    config = load(write_run())
    folder = Path('runs/small/checkpoints/ba00000020')
    folder.mkdir(parents=True)
    free = shutil.disk_usage(tmp_path).free
    size = free // 4
    assert find_disk_warning(config, size + size // 8, 3) is not None
    os.truncate(_make(folder / 'model.safetensors'), size)  # sparse: it takes no room
    assert find_disk_warning(config, size + size // 8, 3) is None


def test_a_bucket_has_room(write_run):
    assert find_disk_warning(load(write_run(), ['run_folder=s3://bucket/run']), 10**18, 6) is None


def _make(path: Path) -> Path:
    path.touch()
    return path

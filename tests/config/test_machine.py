import pytest

from rewarm.config.load import load
from rewarm.config.machine import default_workers


@pytest.mark.parametrize(
    ('cores', 'ranks', 'workers'),
    [(1, None, 1), (2, None, 2), (2, '2', 1), (16, '8', 2), (96, '8', 4), (4, '8', 1), (8, 'x', 4)],
)
def test_loader_processes_follow_the_cores(write_run, monkeypatch, cores, ranks, workers):
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(cores)))
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    if ranks is not None:
        monkeypatch.setenv('LOCAL_WORLD_SIZE', ranks)
    assert default_workers() == workers
    assert load(write_run()).data.num_workers == workers
    assert load(write_run(), ['data.shuffle_block_size=64']).data.num_workers == workers
    assert load(write_run(), ['data.num_workers=7']).data.num_workers == 7

from __future__ import annotations

import json

import pytest

from rewarm.config.errors import UserError
from rewarm.config.goodput import Conditions
from rewarm.report.measured import measure
from tests.report.conftest import TOKENS_PER_BATCH
from tests.report.story import Story


def test_speed_saves_restarts_and_preemptions_are_those_of_the_run(tmp_path):
    story = Story(tmp_path / 'run')
    story.start(30).train(300).save(seconds=8, stall=0.5).train(60).kill(100)
    story.start(20).train(300).save(seconds=9, stall=0.4).train(60).preempt(40)
    story.start(20).train(300).save(seconds=10, stall=0.6).train(60)
    story.write()
    (story.folder / 'environment.json').write_text(json.dumps({'world_size': 4}))
    known = measure(story.folder)
    assert known.tokens_per_second == TOKENS_PER_BATCH / 4  # of one GPU
    assert known.save_seconds == 8.5  # 6 (the last one, waited for), 8, 9, 10
    assert known.save_stall_seconds == pytest.approx(0.55)
    assert known.restart_seconds == pytest.approx((120 + 60) / 2, abs=0.6)
    alive = sum(story.truth.values()) - story.truth['stopped']
    assert known.preemptions_per_day == pytest.approx(2 / alive * 86400, rel=0.01)
    assert known.notice_share == 0.5


def test_what_did_not_happen_is_not_known(tmp_path):
    assert measure(Story(tmp_path / 'a').start().train(10).write()) == Conditions(tokens_per_second=TOKENS_PER_BATCH)
    assert measure(Story(tmp_path / 'b').write()) == Conditions()


@pytest.mark.parametrize('speed', [0, 5e-324])
def test_a_speed_of_nothing_is_not_known(tmp_path, speed):
    folder = Story(tmp_path / 'run').start().train(10).write()
    path = folder / 'metrics.jsonl'
    path.write_text(
        path.read_text().replace(f'"tokens_per_second": {float(TOKENS_PER_BATCH)}', f'"tokens_per_second": {speed}')
    )
    assert measure(folder) == Conditions()


def test_a_save_of_an_old_run_blocked_for_all_of_its_time(make_run):
    known = measure(make_run('rewarm'))
    assert (known.save_stall_seconds, known.save_seconds) == (0.4, 0.4)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        measure(tmp_path / 'nowhere')

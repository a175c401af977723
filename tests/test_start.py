from __future__ import annotations

import sys
from pathlib import Path

from composer.devices import DeviceCPU

from rewarm.checkout import PROJECT, find_commit
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.report.facts import facts
from rewarm.report.run_folder import read_run
from rewarm.start import write_start_files


def test_what_a_start_writes_is_what_the_page_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['rewarm', 'train', 'quick.yaml'])
    config = load(Path(PROJECT / 'yamls/demo/quick.yaml'), [])
    write_start_files(tmp_path, config, make_plan(config), DeviceCPU())
    run = read_run(tmp_path)
    assert run.environment.commit == find_commit()
    assert run.environment.command == sys.argv
    told = facts(run)
    assert 'rewarm train quick.yaml' in told
    assert '617,088 parameters, from scratch' in told
    assert [each.name for each in run.config.eval.sets] == ['old', 'new']

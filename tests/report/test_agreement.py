"""The plan, the records, the status, the page and a comparison tell the same of the same three stages."""

from __future__ import annotations

import json

import pytest

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.report.arms import last_stage_arm
from rewarm.report.forgetting import set_changes, set_outcomes
from rewarm.report.page import write_page
from rewarm.report.run_folder import read_run
from rewarm.report.show_status import to_json
from rewarm.report.status import find_status
from rewarm.report.summary import summary
from tests.report.stages import write_stages
from tests.report.test_page import Page

STAGES = {'law': ['law'], 'june': ['june'], 'anneal': ['june']}
LOSSES = {
    'pile': {'law': (2.2, 2.4, 2.5), 'june': (2.5, 2.6, 2.7), 'anneal': (2.7, 2.68, 2.66)},
    'law': {'law': (5.0, 4.0, 3.16), 'june': (3.16, 3.4, 3.52), 'anneal': (3.52, 3.51, 3.5)},
    'june': {'law': (4.1, 4.1, 4.0), 'june': (4.0, 3.5, 3.3), 'anneal': (3.3, 3.25, 3.2)},
}
TOLD = {
    'pile': ('old', 'old', 'old'),
    'law': ('new', 'old', 'old'),
    'june': ('not trained', 'new', 'old, trained again'),
}
# As docs/forgetting.md works them out: after minus before, in the last stage, since trained, since the run began.
DIFFERENCES = {'pile': (-0.04, 0.46, 0.46), 'law': (-0.02, 0.34, -1.5), 'june': (-0.1, None, -0.9)}


@pytest.fixture
def folder(tmp_path):
    return write_stages(tmp_path / 'run', STAGES, LOSSES)


def as_text(value):
    return f'{value:+.3f}'.replace('-', '−')


def test_the_plan_and_the_report_tell_the_same(folder, tmp_path):
    stages = ''.join(
        f'  - {{name: {name}, max_duration: 2ba, schedule: {{name: constant, lr: 1e-4}}, '
        f'train: {{streams: [{{name: {stream}, local: d/{stream}}}]}}}}\n'
        for name, (stream,) in STAGES.items()
    )
    sets = ''.join(
        f'    - {{name: {name}, local: v/{name}, role: {"upstream" if name == "pile" else "downstream"}}}\n'
        for name in TOLD
    )
    (tmp_path / 'run.yaml').write_text(
        f'run_name: x\nrun_folder: x\nmax_seq_len: 8\nglobal_train_batch_size: 1\ndevice_train_microbatch_size: 1\n'
        f'tokenizer: t.json\nmodel: {{name: pythia-14m, init_from: hf:x/y}}\nstages:\n{stages}eval:\n  sets:\n{sets}'
    )
    assert make_plan(load(tmp_path / 'run.yaml')).eval_sets == TOLD
    run = read_run(folder)
    assert {each.set: tuple(told.words for told in each.told.values()) for each in set_changes(run)} == TOLD
    assert {(each.set, each.stage.name): each.told.words for each in set_outcomes(run)} == {
        (name, stage): words for name, told in TOLD.items() for stage, words in zip(STAGES, told, strict=True)
    }


def test_status_says_what_the_records_say(folder):
    for each in to_json(find_status(folder))['evaluations']:
        spans = [each[key] for key in ('last_stage', 'since_trained', 'since_began')]
        found = [None if span is None else span['after'] - span['before'] for span in spans]
        assert found == [None if value is None else pytest.approx(value) for value in DIFFERENCES[each['set']]]
        forgotten = [None if span is None else span['forgetting'] for span in spans]
        old_at_first = each['set'] == 'pile'
        assert forgotten == [*found[:2], found[2] if old_at_first else None]


def test_the_page_says_what_the_records_say(folder, tmp_path):
    rows = Page(write_page([folder], tmp_path / 'page.html').read_text()).rows
    for name, differences in DIFFERENCES.items():
        label = f'{name} ({TOLD[name][-1]})'
        cells = ['anneal trains it' if value is None else as_text(value) for value in differences]
        assert [label, f'{LOSSES[name]["anneal"][-1]:.3f}', *cells] in rows
        in_the_stage = [row for row in rows if row[0] == label and len(row) > 8][-1]
        assert in_the_stage[6] == as_text(differences[0])  # forgetting, not adaptation


def test_a_comparison_says_what_the_records_say(folder, tmp_path):
    arm = last_stage_arm(read_run(folder))
    assert arm is not None
    # Pile and law: (-0.04 - 0.02) / 2, (0.46 + 0.34) / 2; of what the run began with only pile: 0.46. june: 3.30 -> 3.20.
    assert arm.old is not None
    assert arm.old.forgetting == pytest.approx(-0.03)
    assert arm.since_trained == pytest.approx(0.4)
    assert arm.since_began == pytest.approx(0.46)
    assert arm.new is not None
    assert arm.new.adaptation == pytest.approx(0.1)
    other = write_stages(tmp_path / 'other', STAGES, LOSSES)
    rows = Page(write_page([folder, other], tmp_path / 'page.html').read_text()).rows
    row = next(row for row in rows if row[0] == 'other' and len(row) > 8)
    assert row[5:8] == ['−0.030', '+0.400', '+0.460']
    assert summary([folder])[1].split()[-5:] == ['-0.03', '+0.40', '3.300', '3.200', '+0.10']


def test_records_keep_the_role_that_older_readers_know(folder):
    lines = [json.loads(line) for line in (folder / 'evals.jsonl').read_text().splitlines()]
    assert {(line['set'], line['role']) for line in lines} == {
        ('pile', 'upstream'),
        ('law', 'downstream'),
        ('june', 'downstream'),
    }

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from rewarm.report.facts import facts
from rewarm.report.run_folder import read_run
from rewarm.report.spending import device_hours, find_trained_tokens
from tests.report.conftest import NEW_BATCHES, TOKENS_PER_BATCH
from tests.report.story import Story


def facts_of(folder, price=None):
    found = re.findall('<dt>(.*?)</dt><dd>(.*?)</dd>', facts(read_run(folder), price))
    return {name: unescape(text).replace('\N{NO-BREAK SPACE}', ' ') for name, text in found}


def test_what_was_spent(make_run):
    folder = make_run('replay')
    (folder / 'config.yaml').write_text(
        'run_name: x\nmax_seq_len: 2048\nmodel: {name: pythia-410m, init_from: "hf:EleutherAI/pythia-410m"}\n'
    )
    found = facts_of(folder, price=2.5)
    tokens = NEW_BATCHES * TOKENS_PER_BATCH
    assert found['Model'] == 'pythia-410m, 405,334,016 parameters, from hf:EleutherAI/pythia-410m'
    assert found['Tokens trained'] == f'{tokens:,}'
    assert found['Operations'] == f'2.73e+09 FLOPs a token (attention in full), {2.727e9 * tokens:.3g} in all'
    assert found['Process hours'] == '0.04'  # 151 s
    assert found['Cost'].startswith('0.10 at 2.5 for an hour')
    assert found['Began'] == '2026-11-02 09:00 UTC'
    assert found['Ended'] == '2026-11-02 09:02 UTC'


def test_a_custom_model_is_counted_by_its_sizes(make_run):
    folder = make_run('replay')
    model = {'name': 'custom', 'hidden_size': 96, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'vocab_size': 2048}
    (folder / 'config.yaml').write_text(json.dumps({'max_seq_len': 128, 'model': model}))
    layers = 2 * (4 * 96 * 96 + 4 * 96 + 8 * 96 * 96 + 5 * 96 + 4 * 96) + 2 * 96  # biases and norms among them
    embedding = 2048 * 96
    found = facts_of(folder)
    assert found['Model'] == f'custom, {layers + 2 * embedding:,} parameters'
    assert f'{6 * (layers + embedding) + 12 * 2 * 96 * 128:.3g} FLOPs a token' in found['Operations']
    assert 'Cost' not in found
    del model['hidden_size']
    (folder / 'config.yaml').write_text(json.dumps({'max_seq_len': 128, 'model': model}))
    found = facts_of(folder)
    assert found['Model'] == 'custom'
    assert 'Operations' not in found


def test_hours_are_those_in_which_processes_were_there(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(299).save().train(50).kill(3600).start().train(99).preempt(1800).start().train(50)
    for event in story.events:
        if event['event'] == 'run_start':
            event['world_size'] = 8
    run = read_run(story.write())
    alive = sum(story.truth.values()) - story.truth['stopped']
    assert device_hours(run) == pytest.approx(8 * alive / 3600, rel=1e-3)
    assert find_trained_tokens(run) == (len(story.metrics) * TOKENS_PER_BATCH, 50 * TOKENS_PER_BATCH)
    assert '51.2 k more that were lost' in facts_of(story.folder)['Tokens trained']


def test_command_and_commit(make_run):
    folder = make_run('replay')
    environment = {'command': ['rewarm', 'train', 'a b.yaml'], 'commit': 'c0ffee', 'device_kind': 'gpu', 'versions': {}}
    (folder / 'environment.json').write_text(json.dumps(environment))
    found = facts_of(folder)
    assert found['Command of the last start'] == "rewarm train 'a b.yaml'"
    assert found['Commit of rewarm'] == 'c0ffee'
    assert 'GPU hours' in found
    (folder / 'environment.json').write_text('{}')
    assert not {'Command of the last start', 'Commit of rewarm', 'Versions', 'Machine'} & facts_of(folder).keys()


def test_a_run_that_left_only_metrics_has_facts(make_run):
    folder = make_run('replay')
    for name in ('config.yaml', 'events.jsonl', 'environment.json', 'plan.json', 'evals.jsonl'):
        (folder / name).unlink()
    assert facts_of(folder)['Tokens trained'] == f'{NEW_BATCHES * TOKENS_PER_BATCH:,}'

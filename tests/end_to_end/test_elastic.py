"""A run goes on with another number of ranks: same samples, same rates, losses equal up to the order of sums."""

import os
import signal

import pytest

from tests.end_to_end.waiting import wait_for, wait_until_free

MICROBATCH = {1: 4, 2: 4, 4: 2}


@pytest.mark.slow
def test_a_run_goes_from_one_number_of_ranks_to_another_within_a_stage_and_across_its_edge(make_run, unbroken):
    run, ranks = make_run(), (1, 2, 4, 1)
    for number, batches in zip(ranks[:-1], (2, 4, 9), strict=True):  # the stages have 6 batches each
        process = run.start(f'device_train_microbatch_size={MICROBATCH[number]}', ranks=number)
        wait_for(lambda batches=batches: run.folder.exists() and len(run.lines('metrics')) >= batches, seconds=240)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until_free(run)
    run.finish(f'device_train_microbatch_size={MICROBATCH[ranks[-1]]}', ranks=ranks[-1])
    starts = [event['world_size'] for event in run.lines('events') if event['event'] == 'run_start']
    assert starts == list(ranks)
    assert len(run.lines('metrics')) == len(unbroken.lines('metrics')) == 12
    for record, alone in zip(run.lines('metrics'), unbroken.lines('metrics'), strict=True):
        for key in ('stage', 'batch', 'tokens', 'lr', 'samples', 'sample_ids_crc32'):
            assert record[key] == alone[key]
        assert record['loss'] == pytest.approx(alone['loss'], rel=1e-4)
        assert record['grad_norm'] == pytest.approx(alone['grad_norm'], rel=1e-3)
    evaluations = {(e['stage'], e['batch'], e['set']): e['loss'] for e in unbroken.lines('evals')}
    assert {(e['stage'], e['batch'], e['set']) for e in run.lines('evals')} == set(evaluations)
    for record in run.lines('evals'):
        assert record['loss'] == pytest.approx(evaluations[record['stage'], record['batch'], record['set']], rel=1e-4)
    begun = [event['stage'] for event in run.lines('events') if event['event'] == 'stage_start']
    assert begun == ['first', 'second']

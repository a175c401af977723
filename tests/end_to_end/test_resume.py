"""A run that is killed and started again is the run that was never killed."""


def test_two_stage_run_trains_evaluates_and_finishes(unbroken):
    assert [r['batch'] for r in unbroken.lines('metrics')] == list(range(1, 13))
    marks = [(r['stage'], r['batch'], r['when'], r['set']) for r in unbroken.lines('evals')]
    assert marks == [
        (stage, batch, when, name)
        for stage, batch, when in [
            ('first', 0, 'start'),
            ('first', 3, 'interval'),
            ('first', 6, 'end'),
            ('second', 6, 'start'),
            ('second', 9, 'interval'),
            ('second', 12, 'end'),
        ]
        for name in ('old', 'new')
    ]
    assert unbroken.checkpoints() == ['ba00000006', 'ba00000008', 'ba00000010', 'ba00000012']

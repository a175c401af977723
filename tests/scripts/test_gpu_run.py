"""The one GPU command: a section that dies costs itself only, what is wrong ends it with 1, results say where they are from."""

import json
import sys

import bench_table
import pytest

from scripts.gpu import run

PROLOGUE = """
import json, sys, time
def record(**values):
    with open(sys.argv[sys.argv.index('--records') + 1], 'a') as file:
        file.write(json.dumps({'section': 'stand-in', 'implementation': '', **values}) + '\\n')
"""


def section(name: str, text: str, limit: float = 30, *, needs: float = 0, proves: bool = True) -> run.Section:
    return run.Section(name, ('-c', PROLOGUE + text), limit, needs, proves)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command with stand-ins for its sections; returns its exit code, its records and what it printed."""
    monkeypatch.setattr(run.Run, '_ask', lambda self: {'device': 'Stand-in 9000', 'torch': '2.11', 'triton': '3.6'})

    def call(*sections: run.Section, arguments: tuple[str, ...] = (), tables: bool = False) -> tuple[int, list[dict]]:
        if not tables:  # they take seconds
            monkeypatch.setattr(run.Run, 'finish', lambda self: self.log.close())
        monkeypatch.setattr(run, 'SECTIONS', sections)
        monkeypatch.setattr(sys, 'argv', ['run.py', '--out', str(tmp_path / 'out'), *arguments])
        code = run.main()
        return code, [json.loads(line) for line in (tmp_path / 'out/stand-in-9000.jsonl').read_text().splitlines()]

    return call


def test_crash_hang_and_failure_cost_their_section_only(command, capfd):
    code, records = command(
        section('crash', "record(item='before'); import os; os.abort()"),
        section('hang', "record(item='before'); print('hanging', flush=True); time.sleep(60)", limit=2),
        section('wrong', "record(item='proof', ok=False); sys.exit(1)"),
        section('slow', 'sys.exit(1)', proves=False),
        section('right', "record(item='proof', ok=True)"),
        section('costly', '', needs=10_000),
        tables=True,
    )
    assert code == 1
    ends = {record['item']: record for record in records if record['section'] == 'run'}
    assert ends['crash']['ended'] < 0
    assert ends['hang']['ended'] == 'at its limit'
    assert 2 <= ends['hang']['seconds'] < 10
    assert (ends['wrong']['ended'], ends['right']['ended']) == (1, 0)
    assert 'of the budget left' in ends['costly']['skipped']
    assert [r['item'] for r in records if r['section'] == 'stand-in'] == ['before', 'before', 'proof', 'proof']
    printed = capfd.readouterr().out
    assert 'hanging' in printed
    assert 'NOT RIGHT: crash, hang, wrong' in printed
    assert printed.index('| proof | result |') > printed.index('== right')  # the tables come last


def test_right_and_slow_is_no_error_and_each_line_says_where_it_is_from(command, tmp_path, monkeypatch):
    first, _ = command(section('right', "record(item='speed', ms=3.0)"), arguments=('--commit', 'abc1234'))
    second, records = command(section('right', "record(item='speed', ms=2.0)"))
    monkeypatch.setattr(sys, 'argv', ['bench_table.py', '--show', str(tmp_path / 'out/stand-in-9000.jsonl')])
    bench_table.main()
    assert (first, second) == (0, 0)
    assert [record['ms'] for record in records if record['item'] == 'speed'] == [3.0, 2.0]
    assert records[0]['about']['commit'] == 'abc1234'
    assert all(
        {'when', 'device', 'torch', 'triton', 'commit', 'sm_mhz'} <= record['about'].keys() for record in records
    )
    table = (tmp_path / 'out/stand-in-9000.csv').read_text()
    assert 'stand-in,speed,,ms,2.0,' in table  # the newest counts
    assert ',3.0,' not in table
    assert (tmp_path / 'out/stand-in-9000.md').exists()


def test_sections_are_chosen_by_name_or_first_word(command):
    sections = [section('step one', ''), section('step two', ''), section('other', '')]
    assert [r['item'] for r in command(*sections, arguments=('--only', 'step'))[1]] == ['step one', 'step two']
    with pytest.raises(SystemExit):
        command(*sections, arguments=('--only', 'stop'))


def test_without_a_gpu_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['run.py', '--out', str(tmp_path)])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(SystemExit, match='DRY=1'):
        run.main()


def test_clocks_are_those_of_the_busy_gpu(monkeypatch, tmp_path):
    smi = tmp_path / 'nvidia-smi'
    smi.write_text(
        '#!/bin/sh\nprintf "345, 2619, 70.1, 30, 0\\n1980, 2619, 600.0, 50, 99\\n1700, 2619, 700.5, 60, 100\\n"\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    clocks = run.Clocks(tmp_path / 'clocks')
    assert clocks.process is not None
    clocks.process.wait()
    expected = {'sm_mhz': '1700-1980', 'memory_mhz': 2619.0, 'watts': 700.5, 'celsius': 60.0}
    assert clocks.since_last() == expected
    assert clocks.since_last() == expected  # nothing new was seen
    clocks.stop()

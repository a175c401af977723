"""The README of the kernels tells what is there, and its figures are those of the results."""

import json
import re
from pathlib import Path

import bench_table
from bench_cases import CASES
from rewarm_kernels.attention import BACKENDS

from scripts.gpu.run import SECTIONS

ROOT = Path(__file__).parents[2]
README = (ROOT / 'kernels/README.md').read_text()


def test_tables_are_what_the_results_say(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['bench_table.py', '--check'])
    assert bench_table.main() == 0, capsys.readouterr().out


def test_every_operation_is_named_and_measured():
    files = {path.name for path in (ROOT / 'kernels/rewarm_kernels').glob('[!_]*.py')}
    assert files == set(re.findall(r'\]\(rewarm_kernels/(\w+\.py)\)', README))
    measured = {name.split()[0] for name in CASES} | {'attention', 'launch', 'matmul'}
    assert {path.removesuffix('.py') for path in files} <= measured


def test_links_and_scripts_exist():
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', README) if not link.startswith('http')]
    assert links
    assert [link for link in links if not (ROOT / 'kernels' / link).exists()] == []
    scripts = re.findall(r'(?<![\w/])(?:kernels|scripts|tests)/[\w/]+\.py', README)
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_tables_ask_for_what_the_command_measures():
    steps = {section.name.removeprefix('step ') for section in SECTIONS if section.name.startswith('step ')}
    assert set(bench_table.STEPS) == steps
    assert {name.partition(',')[0] for name in bench_table.BACKENDS} == {'sdpa', *BACKENDS} - {'cpu'}


RECORDS = [
    '{"section": "ops", "item": "bias_gelu tanh", "implementation": "ours", "ms_forward": 0.25, "gb_per_second_forward": 4000, '
    '"percent_of_copy_forward": 93.5, "about": {"device": "H100", "torch": "2.11", "commit": "abc"}}',
    '{"section": "step", "item": "410M", "implementation": "triton", "tokens_per_second": 205000.4, "mfu_causal": 50.2, '
    '"mfu_palm": 56.5, "mfu_foundry": 62.9, "ms": 319.7, "peak_gb": 44.1, "microbatch": 32, "about": {"device": "H100"}}',
    '{"section": "curve", "item": "difference", "implementation": "triton bf16 - torch bf16", "largest": 0.02, "bound": 0.01, '
    '"ok": false, "about": {"device": "H100"}}',
    '{"section": "resume", "item": "killed", "implementation": "", "skipped": "composer is not importable", "about": {}}',
]


def test_figures_reach_their_cells():
    page = bench_table.tables(bench_table.read_csv(bench_table.to_csv(RECORDS)))
    assert '| bias_gelu tanh | forward | 1,074 MB | 0.250 | 4,000 GB/s, 94 % | 85 % | not measured |' in page
    assert '| ours, triton | 205,000 | 50.2 / 56.5 / 62.9 | 319.7 | 44.1 | 32 |' in page
    assert 'losses differ by up to 0.02, bound 0.01: NOT RIGHT' in page
    assert 'composer is not importable' in page
    assert page.count('not measured') > 50


def test_the_newest_record_counts():
    text = bench_table.to_csv([RECORDS[1].replace('205000.4', '1'), RECORDS[1]])
    assert bench_table.read_csv(text)['step', '410M', 'triton']['tokens_per_second'] == '205000.4'
    assert text.count('tokens_per_second') == 1


def test_results_say_where_they_are_from():
    for path in (ROOT / 'kernels/results').glob('*.jsonl'):
        for line in path.read_text().splitlines():
            about = json.loads(line)['about']
            assert about.keys() >= {*bench_table.CIRCUMSTANCES}, path.name
            assert about['commit'] != 'unknown', path.name

"""Makes CSV files and tables of what was measured; no figure in the README is typed by hand.

    python kernels/bench_table.py                   each results/DEVICE.jsonl to a .csv, and those into README.md
    python kernels/bench_table.py --check           the same without writing; ends with 1 if something would change
    python kernels/bench_table.py --show FILE       FILE.jsonl to .csv and .md beside it, and prints the tables

A run of `make gpu` adds lines to a .jsonl; of each thing measured the newest line counts.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_cases import CASES, FULL

__all__ = ['main', 'read_csv', 'tables', 'to_csv']

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / 'results', HERE / 'README.md'
BEGIN, END = '<!-- made by bench_table.py: begin -->', '<!-- end -->'
NOT_MEASURED = 'not measured'

CIRCUMSTANCES = ('when', 'device', 'driver', 'torch', 'triton', 'cudnn', 'transformers', 'commit', 'sm_mhz')
COLUMNS = ('section', 'item', 'implementation', 'key', 'value', *CIRCUMSTANCES)
LISTS = ('kernels', 'losses', 'failures', 'different')  # in the .jsonl alone

STEPS = {
    'hf-amp': 'Hugging Face, bf16 autocast',
    'hf': 'Hugging Face, bf16',
    'hf-compiled-layers': 'Hugging Face, bf16, layers compiled',
    'hf-compiled': 'Hugging Face, bf16, compiled',
    'torch': 'ours, torch',
    'torch-compiled': 'ours, torch, compiled',
    'triton': 'ours, triton',
    'triton-compiled': 'ours, triton, compiled',
}
BACKENDS = ('sdpa', 'cudnn', 'flash', 'flash, deterministic', 'fa3', 'fa4', 'efficient', 'math')
PARTS = ('gemm', 'attention', 'elementwise', 'loss', 'optimizer', 'other', 'gap')

BARS = {
    'add_dual_layer_norm': '85 %',
    'rotary': '70 %',
    'pack_qkv_grad': '70 %',
    'bias_gelu tanh': '85 %',
    'bias_gelu erf': '85 %',
    'linear_cross_entropy': '35.2 ms on an H200',  # 1.15 x (25.6 of products + 5)
    'adamw': '85 %, and faster than torch',
}
"""Of a copy's bandwidth, unless it says otherwise: what was set as a goal before anything was measured."""

Key = tuple[str, str, str]
Found = dict[Key, dict[str, str]]


def main() -> int:
    """Does what the command line says; returns whether a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, end with 1 if something would change')
    parser.add_argument(
        '--show', type=Path, metavar='FILE', help='print the tables of one .jsonl, and write them beside it'
    )
    options = parser.parse_args()
    if options.show is not None:
        text = to_csv(options.show.read_text().splitlines())
        page = tables(read_csv(text)) + _trouble(read_csv(text))
        options.show.with_suffix('.csv').write_text(text)
        options.show.with_suffix('.md').write_text(page)
        print(page)
        return 0
    stale = []
    for path in sorted(RESULTS.glob('*.jsonl')):
        stale += _write(path.with_suffix('.csv'), to_csv(path.read_text().splitlines()), options.check)
    before, _, rest = README.read_text().partition(BEGIN)
    measured = [path for path in sorted(RESULTS.glob('*.csv')) if path.read_text().startswith(','.join(COLUMNS[:5]))]
    page = '\n'.join(tables(read_csv(path.read_text())) for path in measured) or tables({})
    stale += _write(README, f'{before}{BEGIN}\n\n{page}\n{END}{rest.partition(END)[2]}', options.check)
    return options.check and bool(stale)


def _write(path: Path, text: str, check: bool) -> list[str]:
    if path.exists() and path.read_text() == text:
        return []
    print(f'{path} {"is not what its sources say" if check else "written"}')
    if not check:
        path.write_text(text)
    return [str(path)]


def to_csv(lines: Iterable[str]) -> str:
    """The newest of each thing measured, a value a line.

    Args:
        lines (Iterable[str]): Of a .jsonl.

    Returns:
        str: A CSV with :data:`COLUMNS`.
    """
    newest: dict[Key, dict[str, Any]] = {}
    for line in lines:
        record = json.loads(line)
        newest[record['section'], record['item'], record['implementation']] = record
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for key, record in sorted(newest.items()):
        around = [record['about'].get(name, 'unknown') for name in CIRCUMSTANCES]
        values = {
            name: value for name, value in record.items() if name not in ('section', 'item', 'implementation', 'about')
        }
        writer.writerows([*key, name, value, *around] for name, value in values.items() if name not in LISTS)
    return text.getvalue()


def read_csv(text: str) -> Found:
    """What :func:`to_csv` wrote.

    Args:
        text (str): The CSV.

    Returns:
        dict: By section, item and implementation: values and circumstances by name.
    """
    found: Found = {}
    for row in csv.DictReader(io.StringIO(text)):
        record = found.setdefault((row['section'], row['item'], row['implementation']), {})
        record |= {name: row[name] for name in CIRCUMSTANCES} | {row['key']: row['value']}
    return found


def tables(found: Found) -> str:
    """The tables of one device, in Markdown.

    Args:
        found (dict): As :func:`read_csv` gives it; what is not in it is `not measured`.

    Returns:
        str: Headings and tables.
    """
    parts = (_heading(found), _steps(found), _ops(found), _attention(found), _proofs(found))
    return '\n\n'.join(parts) + '\n'


def _heading(found: Found) -> str:
    about = next((record for key, record in sorted(found.items(), reverse=True) if key[0] != 'run'), None)
    if about is None:
        return '### No GPU yet'
    words = [f'{name} {about[name]}' for name in ('driver', 'torch', 'triton', 'cudnn', 'transformers', 'commit')]
    copy, square = found.get(('facts', 'copy', '2147 MB'), {}), found.get(('facts', 'product square', ''), {})
    products = found.get(('facts', 'products of a step', ''), {})
    return (
        f'### {about["device"]}\n\n{", ".join(words)}; {about["when"]}. SM clock while busy {about["sm_mhz"]} MHz. A copy: '
        f'{_number(copy, "gb_per_second", 0)} GB/s. Products in bf16: {_number(square, "tflops", 0)} TFLOP/s at 8,192 cubed; '
        f'those of a step {_number(products, "ms", 1)} ms.'
    )


def _steps(found: Found) -> str:
    speeds, parts = [], []
    for way, title in STEPS.items():
        step, spans = found.get(('step', '410M', way), {}), found.get(('step', 'breakdown', way), {})
        shares = ' / '.join(_number(step, f'mfu_{name}', 1) for name in ('causal', 'palm', 'foundry'))
        speeds.append([title, _number(step, 'tokens_per_second', 0), shares if step else NOT_MEASURED])
        speeds[-1] += [_number(step, 'ms', 1), _number(step, 'peak_gb', 1), _number(step, 'microbatch', 0)]
        parts.append([title, *(_number(spans, f'ms_{part}', 1) for part in PARTS)])
    heads = ['step of 65,536 tokens', 'tokens/s', 'MFU causal / PaLM / Foundry', 'ms', 'peak GB', 'sequences at once']
    return _table(heads, speeds) + '\n\n' + _table(['ms of a step', *PARTS], parts)


def _ops(found: Found) -> str:
    heads = ['op', 'pass', 'work', 'ours ms', 'reaches', 'bar', 'torch ms', 'compiled ms', 'Liger ms', 'others ms']
    rows = []
    for name, make in CASES.items():
        case = make(FULL, torch.device('meta'))
        work = {**case.moved, **{key: value for key, value in case.flops.items() if key == 'both'}}
        for number, (key, amount) in enumerate(work.items()):
            ours = found.get(('ops', name, 'ours'), {})
            if key in case.moved:
                todo = f'{amount / 1e6:,.0f} MB'
                reached = (
                    f'{_number(ours, f"gb_per_second_{key}", 0)} GB/s, {_number(ours, f"percent_of_copy_{key}", 0)} %'
                )
            else:
                todo, reached = f'{amount / 1e12:.2f} TFLOP', f'{_number(ours, f"tflops_{key}", 0)} TFLOP/s'
            times = {way: _number(found.get(('ops', name, way), {}), f'ms_{key}', 3) for way in case.ways}
            others = [
                f'{way}: {time}' for way, time in times.items() if way not in ('ours', 'torch', 'compile', 'liger')
            ]
            rows.append([name if number == 0 else '', key, todo, times['ours'], reached if ours else NOT_MEASURED])
            rows[-1] += [BARS.get(name, '-'), *(times.get(way, '-') for way in ('torch', 'compile', 'liger'))]
            rows[-1].append('; '.join(others) or '-')
    return _table(heads, rows)


def _attention(found: Found) -> str:
    heads = [
        'attention, 32 x 16 x 2,048 x 64, causal',
        'forward TFLOP/s',
        'both TFLOP/s (bar: 330)',
        'ms of a step',
        'error of gradients',
        'two runs equal',
    ]
    rows = []
    for name in BACKENDS:
        record = found.get(('attention', 'causal', name), {})
        rates = [_number(record, f'tflops_{key}', 0) for key in ('forward', 'both')]
        rows.append([name, *rates, _number(record, 'ms_a_step', 1), record.get('error_grads', NOT_MEASURED)])
        rows[-1].append({'True': 'yes', 'False': 'no'}.get(record.get('bit_equal', ''), NOT_MEASURED))
    return _table(heads, rows)


def _proofs(found: Found) -> str:
    def said(key: Key, words: str) -> list[str]:
        record = found.get(key, {})
        if 'skipped' in record or 'error' in record:
            return [record.get('skipped') or record['error'][:80]]
        try:
            text = words.format_map(record)
        except KeyError:
            return [NOT_MEASURED]
        return [text + {'True': '', 'False': ': NOT RIGHT'}.get(record.get('ok', ''), '')]

    tests = '{passed} passed, {failed} failed, {skipped_tests} skipped'
    rows = [
        ['tests of kernels', *said(('tests', 'small', ''), tests)],
        ['tests of kernels at full size', *said(('tests', 'large', ''), tests)],
        *(
            [f'{name} against Hugging Face in fp32', *said(('parity', 'gradients', name), words)]
            for name in ('triton bf16', 'triton fp32')
            for words in ('gradients reach {share_of_bound} of their bound, error {error_grads}; loss {error_loss}',)
        ),
        [
            'gradients of two passes',
            *said(('parity', 'bit equal', 'triton bf16'), '{equal} of {tensors} tensors equal'),
        ],
        [
            '200 steps, triton against torch',
            *said(
                ('curve', 'difference', 'triton bf16 - torch bf16'), 'losses differ by up to {largest}, bound {bound}'
            ),
        ],
        [
            '`rewarm train` against the bare step',
            *said(
                ('trainer', 'overhead', ''),
                '{percent_slower} % slower, at most {bar_percent} %',
            ),
        ],
        [
            'killed and resumed',
            *said(('resume', 'killed', ''), '{batches} batches, killed after {killed_after}, bit-equal'),
        ],
        [
            'a save beside training',
            *said(
                ('save', 'background', ''),
                'stands still {stall_seconds} s, at most {bar_seconds}; whole after {save_seconds} s',
            ),
        ],
    ]
    return _table(['proof', 'result'], rows)


def _trouble(found: Found) -> str:
    """What failed, was skipped, or ran out of time: a list for whoever has just run it."""
    lines = []
    for (section, item, way), record in found.items():
        if (
            said := record.get('error')
            or record.get('skipped')
            or (record.get('ended', '0') != '0' and f'ended {record["ended"]}')
        ):
            lines.append(f'- {section} {item} {way}: {said}'[:200])
    return '\nFailed, skipped or out of time:\n\n' + ('\n'.join(lines) or '- nothing') + '\n'


def _number(record: dict[str, str], key: str, digits: int) -> str:
    try:
        return f'{float(record[key]):,.{digits}f}'
    except (KeyError, ValueError):
        return NOT_MEASURED


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


if __name__ == '__main__':
    sys.exit(main())

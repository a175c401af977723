"""The one GPU command: is everything right on this GPU, and how fast is it?

    make gpu                        all sections, most important first, in under 9 minutes on one H100 or H200
    make gpu DRY=1                  the same on a CPU: toy sizes, Triton interpreted, no figure means anything
    python3 scripts/gpu/run.py --only step,parity --out DIR

Needs torch and triton; sections that need more are skipped where it is absent, and say so. No network. Each section is a
process with a time limit, so a crash, a hang or too little memory costs that section only. Results go to OUT (the folder
of --out, $OUT or kernels/results) as they come: DEVICE.jsonl, a line for each, to which every run adds; DEVICE.csv, the
newest of each; DEVICE.md, the tables, printed last; DEVICE.log, what the sections printed. Ends with 1 if something is
not right: a product, a test, parity, the curve, a resume. Slowness alone is no error.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ['SECTIONS', 'Section', 'main']

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'kernels/results'
LOOK_EVERY = 0.2
FOR_TABLES = 8  # seconds kept for the tables, of the budget

ASK = """
import importlib.metadata, json, sys, torch
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return 'absent'
cuda = torch.cuda.is_available()
print(json.dumps({
    'device': torch.cuda.get_device_name() if cuda else 'cpu', 'python': sys.version.split()[0], 'torch': torch.__version__,
    'triton': version('triton'), 'cuda': torch.version.cuda or 'none',
    'cudnn': str(torch.backends.cudnn.version() if cuda else 'none'), 'transformers': version('transformers'),
    'mosaicml': version('mosaicml'), 'liger_kernel': version('liger-kernel')}))
"""


@dataclass(frozen=True)
class Section:
    """One process.

    Args:
        name (str): What ``--only`` calls it, whole or its first word.
        command (tuple[str, ...]): Arguments of Python.
        limit (float): Seconds after which it is ended.
        needs (float): Seconds that must be left to start it.
        proves (bool): Whether the command fails if it does.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needs: float
    proves: bool = False


def _step(way: str, limit: float, needs: float) -> Section:
    return Section(f'step {way}', ('-m', 'scripts.gpu.step', way), limit, needs)


SECTIONS = (
    Section('facts', ('-m', 'scripts.gpu.facts'), 45, 10, proves=True),
    Section('tests', ('-m', 'scripts.gpu.tests'), 120, 20, proves=True),
    Section('attention', ('kernels/bench.py', 'attention'), 45, 10),
    Section('ops', ('kernels/bench.py', 'ops'), 100, 20),
    _step('triton', 45, 15),
    _step('torch', 45, 15),
    _step('hf-amp', 45, 15),
    _step('hf', 45, 15),
    _step('triton-compiled', 60, 20),
    _step('torch-compiled', 60, 20),
    _step('hf-compiled-layers', 60, 20),
    Section('parity', ('-m', 'scripts.gpu.parity'), 45, 15, proves=True),
    Section('curve', ('-m', 'scripts.gpu.curve'), 70, 25, proves=True),
    Section('trainer', ('-m', 'scripts.gpu.trainer'), 80, 30),
    Section('resume', ('-m', 'scripts.gpu.resume'), 80, 30, proves=True),
    Section('save', ('-m', 'scripts.gpu.save'), 60, 30, proves=True),
    _step('hf-compiled', 150, 50),  # the whole model at once: a minute or two of compilation, so last
)
"""In order of importance."""


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help=f'sections, with commas: {", ".join(s.name for s in SECTIONS)}')
    parser.add_argument('--out', type=Path, help='folder of the results (default: $OUT, else kernels/results)')
    parser.add_argument('--budget', type=float, help='seconds for everything (default: 510; dry, 1800)')
    parser.add_argument('--commit', default='', help='written into results, where git cannot tell')
    parser.add_argument('--dry', action='store_true', help='toy sizes on a CPU, Triton interpreted')
    options = parser.parse_args()
    started = time.monotonic()
    sections = _chosen(parser, options.only)
    budget = options.budget or (1800 if options.dry else 510)
    out = options.out or Path(os.environ.get('OUT') or (ROOT / 'runs/gpu-dry' if options.dry else RESULTS))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='rewarm-gpu-') as work:
        run = Run(out.resolve(), Path(work), dry=options.dry, commit=options.commit)
        failed = []
        try:
            for section in sections:
                left = budget - FOR_TABLES - (time.monotonic() - started)
                if left < (1 if options.dry else section.needs):
                    run.note(section, skipped=f'{max(left, 0):.0f} s of the budget left, {section.needs:.0f} needed')
                elif run.section(section, left if options.dry else min(section.limit, left)) and section.proves:
                    failed.append(section.name)
        finally:
            run.finish()
    print(
        f'\n{time.monotonic() - started:.0f} s. '
        + (f'NOT RIGHT: {", ".join(failed)}' if failed else 'Nothing is wrong.')
    )
    return bool(failed)


def _chosen(parser: argparse.ArgumentParser, only: str) -> list[Section]:
    words = [word.strip() for word in only.split(',') if word.strip()]
    known = {name for section in SECTIONS for name in (section.name, section.name.split()[0])}
    if unknown := [word for word in words if word not in known]:
        parser.error(f'there is no section {unknown[0]!r}: {", ".join(section.name for section in SECTIONS)}')
    return [s for s in SECTIONS if not words or s.name in words or s.name.split()[0] in words]


class Run:
    """Starts sections, shows what they print, and adds the circumstances to each of their records.

    Args:
        out (Path): Folder of the results.
        work (Path): Folder for what passes between processes.
        dry (bool): Whether toy sizes run on a CPU.
        commit (str): The commit, if git cannot tell it.
    """

    def __init__(self, out: Path, work: Path, *, dry: bool, commit: str) -> None:
        self.out, self.work, self.dry = out, work, dry
        self.environment = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'kernels'), os.environ.get('PYTHONPATH', '')]).strip(
                os.pathsep
            ),
            'PYTHONUNBUFFERED': '1',
            'TRITON_INTERPRET': '1' if dry else '0',
            'TOKENIZERS_PARALLELISM': 'false',
            'HF_HUB_OFFLINE': '1',
            'XDG_CACHE_HOME': str(work / 'cache'),  # attention is chosen by what is measured in this run
        }
        self.circumstances = {
            'when': time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime()),
            **self._ask(),
            'commit': commit or _commit(),
        }
        self.clocks = Clocks(work / 'clocks')
        self.name = 'dry' if dry else re.sub('[^a-z0-9]+', '-', self.circumstances['device'].lower()).strip('-')
        self.log = (out / f'{self.name}.log').open('wb')
        print(' '.join(f'{key}={value}' for key, value in self.circumstances.items()), flush=True)

    def _ask(self) -> dict[str, str]:
        """Versions and the device's name, from a process that may touch the device."""
        asked = subprocess.run(
            [sys.executable, '-c', ASK], env=self.environment, capture_output=True, text=True, check=False
        )
        if asked.returncode:
            sys.exit(f'torch does not run here:\n{asked.stderr}')
        found = json.loads(asked.stdout.splitlines()[-1])
        if found['device'] == 'cpu' and not self.dry:
            sys.exit('There is no CUDA device here. `make gpu DRY=1` runs toy sizes on a CPU.')
        return {**found, 'driver': _nvidia_smi('driver_version')}

    def section(self, section: Section, limit: float) -> bool:
        """Runs a section to its end or its limit; returns whether it failed."""
        records, output = self.work / 'records', self.work / 'output'
        records.write_text('')
        command = [sys.executable, *section.command, '--records', str(records), '--seconds', f'{limit - 5:.0f}']
        print(f'\n== {section.name} (at most {limit:.0f} s)', flush=True)
        began = time.monotonic()
        with output.open('wb') as target, output.open('rb') as shown, records.open() as lines:
            process = subprocess.Popen(
                [*command, '--dry'] if self.dry else command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None and time.monotonic() - began < limit:
                    time.sleep(LOOK_EVERY)
                    self._pass_on(shown, lines)
                timed_out = process.poll() is None
            finally:
                _end(process)
            self._pass_on(shown, lines)
        self.note(
            section,
            ended='at its limit' if timed_out else process.returncode,
            seconds=round(time.monotonic() - began, 1),
        )
        return timed_out or process.returncode != 0

    def note(self, section: Section, **values: Any) -> None:
        """A record about a section itself."""
        print(f'{section.name}: ' + ' '.join(f'{key}={value}' for key, value in values.items()), flush=True)
        self._write({'section': 'run', 'item': section.name, 'implementation': '', **values})

    def _pass_on(self, shown: Any, lines: Any) -> None:
        """Prints and keeps what a section has printed, and writes its records."""
        text = shown.read()
        sys.stdout.write(text.decode(errors='replace'))
        sys.stdout.flush()
        self.log.write(text)
        while line := lines.readline():
            self._write(json.loads(line))

    def _write(self, record: dict[str, Any]) -> None:
        with (self.out / f'{self.name}.jsonl').open('a') as file:
            file.write(json.dumps({**record, 'about': {**self.circumstances, **self.clocks.since_last()}}) + '\n')

    def finish(self) -> None:
        """Writes and prints the tables."""
        self.clocks.stop()
        self.log.close()
        command = [sys.executable, 'kernels/bench_table.py', '--show', str(self.out / f'{self.name}.jsonl')]
        print(flush=True)
        subprocess.run(command, cwd=ROOT, env=self.environment, check=False)


class Clocks:
    """What nvidia-smi says of clocks and power, four times a second.

    Args:
        path (Path): File that it writes to.
    """

    QUERY = 'clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu'

    def __init__(self, path: Path) -> None:
        self.process: subprocess.Popen | None = None
        if shutil.which('nvidia-smi') is None:
            return
        command = ['nvidia-smi', f'--query-gpu={self.QUERY}', '--format=csv,noheader,nounits', '-i', '0', '-lms', '250']
        with path.open('w') as target:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.DEVNULL)
        self.lines = path.open()
        self.last: dict[str, Any] = {}

    def since_last(self) -> dict[str, Any]:
        """Lowest and highest clock of the busy GPU since the last call, in MHz; without a new look, what was said then."""
        if self.process is None:
            return {'sm_mhz': 'unknown'}
        looks = []
        for line in self.lines.read().splitlines():
            try:
                looks.append([float(word) for word in line.split(',')])
            except ValueError:
                continue  # a line that is being written, or a field that this GPU does not have
        looks = [look for look in looks if len(look) == 5 and look[4] >= 50]
        if looks:
            sm, memory, watts, celsius, _ = zip(*looks)
            self.last = {
                'sm_mhz': f'{min(sm):.0f}-{max(sm):.0f}',
                'memory_mhz': max(memory),
                'watts': max(watts),
                'celsius': max(celsius),
            }
        return self.last or {'sm_mhz': 'not seen busy'}

    def stop(self) -> None:
        """Ends nvidia-smi."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.lines.close()


def _end(process: subprocess.Popen) -> None:
    """Ends a section and what it has started, which is a process group of its own."""
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _nvidia_smi(field: str) -> str:
    command = ['nvidia-smi', f'--query-gpu={field}', '--format=csv,noheader', '-i', '0']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def _commit() -> str:
    command = ['git', 'describe', '--always', '--dirty', '--exclude=*', '--abbrev=7']
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


if __name__ == '__main__':
    sys.exit(main())

"""The demo from text to report, in a folder of its own: ``data/demo``, ``runs/demo-*``, ``runs/demo.html``, ``yamls/demo``.

Everything goes through rewarm's own commands; each is printed before it runs. The two-stage run is preempted in the middle of
its re-warming by a real SIGTERM, and started again.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.demo.corpus import build
from rewarm.demo.training import LOGS, Training, rewarm, shown, train_all
from rewarm.report.figure import write_figure
from rewarm.report.summary import summary
from rewarm.shipped import shipped_files, write_shipped

__all__ = ['run_demo']

DATA = Path('data/demo')
RUN_FILES = Path('yamls/demo')
QUICK_DATASETS = ('old', 'old-val', 'new', 'new-val')
DATASETS = (*QUICK_DATASETS, 'old-unseen')
ARMS = ('rewarm', 'scratch', 'constant', 'replay', 'same-data')  # in the order in which they start
MARKS = ('text', 'run.lock', '*.log')
"""What data, run folders and logs of the demo have in them."""

STARTED_AT = time.monotonic()


def headline(text: str) -> None:
    """Prints the title of a step with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - STARTED_AT), 60)
    print(f'\n[{minutes}:{seconds:02}] {text}', flush=True)


def run(command: list[str]) -> None:
    """Prints and runs a command; ends the demo with its exit code if it fails."""
    print(shown(command), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def on_signals() -> None:
    """Makes the signals that end a process end this one in order, so that no run outlives the demo."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


def start_over(folders: list[Path]) -> None:
    """Removes what an earlier demo left, and says so.

    Raises:
        UserError: If a folder does not look as the demo makes it; nothing is removed then.
    """
    old = [folder for folder in folders if os.path.lexists(folder)]
    for folder in old:
        if not _is_ours(folder):
            raise UserError(
                f'{folder.absolute()} was not made by the demo, which would replace it. Name another folder'
            )
    if old:
        print(f'Removing what an earlier demo left: {", ".join(map(str, old))}')
    for folder in old:
        shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return not any(folder.iterdir()) or any(found for mark in MARKS for found in folder.glob(mark))


def enter(folder: Path) -> None:
    """Goes to the demo's folder and writes its run files there, unless there are some, which may have been edited.

    Raises:
        UserError: If the folder cannot be made or entered.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        raise UserError(f'{folder}: no folder can be made there ({error.strerror}); name another') from None
    if not RUN_FILES.exists():
        write_shipped(Path(), (str(RUN_FILES),))
        return
    shipped = {Path(name): source.read_bytes() for name, source in shipped_files((str(RUN_FILES),)).items()}
    edited = [str(path) for path, data in shipped.items() if path.exists() and path.read_bytes() != data]
    if edited:
        print(f'Using your versions of {", ".join(edited)}')


def run_demo(folder: Path, *, full: bool = False, figure: Path | None = None) -> None:
    """Runs the demo.

    Args:
        folder (Path): Where everything goes; made if needed. What an earlier demo left there is made anew.
        full (bool): All five arms, two at a time, instead of the short two-stage run alone.
        figure (Path | None): A file to draw the README's figure into as well (.svg or .png).

    Raises:
        UserError: If the folder cannot be used or this Python's library is too small.
        SystemExit: If a command fails (with its code), or the demo was stopped.
    """
    on_signals()
    figure = figure and figure.absolute()
    enter(folder)
    names = ARMS if full else ('quick',)
    trainings = [Training(name, sigterm=name == names[0]) for name in names]
    start_over([DATA, *(training.folder for training in trainings), LOGS])
    try:
        _convert(DATASETS if full else QUICK_DATASETS)
        headline('What the run will do')
        run(rewarm('plan', RUN_FILES / f'{names[0]}.yaml'))
        headline('Training: ' + ', '.join(names))
        train_all(trainings)
        _report([training.folder for training in trainings], figure)
    except KeyboardInterrupt:
        print('\nStopped. The next demo starts over.', file=sys.stderr)
        raise SystemExit(130) from None


def _convert(datasets: tuple[str, ...]) -> None:
    headline('Text and tokenizer, from the standard library of this Python')
    started_at = time.monotonic()
    (DATA / 'text').mkdir(parents=True)
    build(Path(sysconfig.get_paths()['stdlib']), DATA / 'text', workers=len(os.sched_getaffinity(0)))
    print(f'  {time.monotonic() - started_at:.0f} s -> {DATA / "text"}')
    headline('Text -> tokens -> shards')
    for name in datasets:
        options = ['--tokenizer', DATA / 'text/tokenizer.json', '--seq-len', '128']
        run(rewarm('convert', DATA / f'text/{name}.jsonl', DATA / name, *options))


def _report(folders: list[Path], figure: Path | None) -> None:
    headline('Report')
    page = Path('runs/demo.html')
    run(rewarm('report', *folders, '--out', page))
    if figure:
        print(f'README figure: {write_figure(folders, figure)}')
    print()
    print('\n'.join(summary(folders)))
    headline(f'Done. Open {page.resolve()}')

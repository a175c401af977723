"""The demo: a small model learns old data, re-warms onto new data, forgets and recovers, on real text and a CPU.

    make demo             all five runs, two at a time          make demo QUICK=1     the two-stage run alone

Everything goes through rewarm's own commands; each is printed before it runs. The two-stage run is preempted in the middle of
its re-warming by a real SIGTERM, and started again. Files go to data/demo/, runs/demo-*/ and runs/demo.html.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.report.figure import write_figure
from rewarm.report.summary import summary

__all__ = ['Training', 'main', 'train_all']

ROOT = Path(__file__).parents[2]
DATA = Path('data/demo')
QUICK_DATASETS = ('old', 'old-val', 'new', 'new-val')
DATASETS = (*QUICK_DATASETS, 'old-unseen')
ARMS = ('rewarm', 'scratch', 'constant', 'replay', 'same-data')  # in the order in which they start
AT_A_TIME = 2  # one thread each
PREEMPTED = 75  # rewarm's exit code for "saved; start me again"
SIGTERM_AT = 0.15  # of the second stage, while the rate is near its peak
LOOK_EVERY = 0.5  # seconds between two looks at the processes
SIGNS_OF_LIFE = 10  # seconds between lines where there is no terminal to draw bars on
ON_A_TERMINAL = sys.stderr.isatty()
STARTED_AT = time.monotonic()


def headline(text: str) -> None:
    """Prints the title of a step with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - STARTED_AT), 60)
    print(f'\n[{minutes}:{seconds:02}] {text}', flush=True)


def rewarm(*arguments: str | Path) -> list[str]:
    """The command line of ``rewarm`` in this environment."""
    return [str(Path(sys.executable).parent / 'rewarm'), *map(str, arguments)]


def shown(command: list[str]) -> str:
    """A command as a user would type it."""
    return '$ ' + shlex.join([Path(command[0]).name, *command[1:]])


def run(command: list[str]) -> None:
    """Prints and runs a command; ends the demo with its exit code if it fails."""
    print(shown(command), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def last_record(path: Path, **wanted: str) -> dict:
    """The newest whole line of a .jsonl file that has these values; empty if there is none yet."""
    try:
        with path.open('rb') as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().split(b'\n')[:-1]
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # the first one may begin in its middle
            continue
        if all(record.get(key) == value for key, value in wanted.items()):
            return record
    return {}


class Training:
    """One run: the ``rewarm train`` process of the moment, and its progress as its run folder tells it.

    Args:
        name (str): A file in ``yamls/demo``.
        sigterm (bool): Whether to preempt it once, in the middle.
    """

    def __init__(self, name: str, *, sigterm: bool = False) -> None:
        path = f'yamls/demo/{name}.yaml'
        config = load(path)
        plan = make_plan(config)
        self.name = name
        self.folder = Path(config.run_folder)
        self.command = rewarm('train', path)
        self.batches = plan.stages[-1].end_batch
        self.sigterm_at = plan.stages[-1].start_batch + round(SIGTERM_AT * plan.stages[-1].batches) if sigterm else None
        source = config.model.init_from.partition('checkpoint:')[2]
        self.waits_for = Path(source, 'manifest.json') if source else None
        self.process: subprocess.Popen | None = None
        self.bar: tqdm | None = None
        self.resumed_at: str | None = None
        self.log = Path(f'runs/demo-logs/{name}.log')

    @property
    def ready(self) -> bool:
        """Whether the checkpoint that it starts from is there."""
        return self.waits_for is None or self.waits_for.exists()

    def start(self) -> None:
        """Starts the process, for the first time or again."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        tell(f'{shown(self.command)}    # output in {self.log}')
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
        with self.log.open('ab') as log:
            # In a process group of its own, so that Ctrl-C reaches it once: from us, as a SIGTERM.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
        if ON_A_TERMINAL and self.bar is None:
            layout = (
                '{desc:<10}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} batches [{elapsed}<{remaining}{postfix}]'
            )
            self.bar = tqdm(total=self.batches, desc=self.name, leave=False, bar_format=layout, dynamic_ncols=True)

    def progress(self) -> tuple[int, str]:
        """Returns the batches done and a short account of where the run is."""
        now = last_record(self.folder / 'metrics.jsonl')
        if not now:
            return 0, 'starting'
        facts = [now['stage'], f'rate {now["lr"]:.1e}', f'loss {now["loss"]:.2f}']
        for name in ('old', 'new'):
            evaluation = last_record(self.folder / 'evals.jsonl', set=name)
            if evaluation:
                facts.append(f'{name} {evaluation["loss"]:.2f}')
        return now['batch'], ', '.join(facts)

    def draw(self) -> None:
        """Draws the progress: the bar's next state, or a line."""
        batch, account = self.progress()
        if self.bar is None:
            tell(f'  {self.name:<10}{batch:5,}/{self.batches:,} batches, {account}')
        else:
            self.bar.n = batch
            self.bar.set_postfix_str(account, refresh=True)

    def preempt_if_due(self) -> None:
        """Sends the SIGTERM, once, when the run has come far enough."""
        batch, _ = self.progress()
        if self.sigterm_at is not None and batch >= self.sigterm_at and self.process is not None:
            self.sigterm_at = None
            self.process.send_signal(signal.SIGTERM)
            tell(f'  SIGTERM to {self.name} at batch {batch:,} of {self.batches:,}, as if its machine were taken away')

    def check(self) -> bool:
        """Looks after the process.

        Returns:
            bool: Whether the run is finished.

        Raises:
            SystemExit: If the run failed; its last lines are printed.
        """
        code = self.process.poll() if self.process else None
        resume = last_record(self.folder / 'events.jsonl', event='resume')
        if resume.get('time') != self.resumed_at:
            self.resumed_at = resume['time']
            tell(
                f'  {self.name} went on behind batch {resume["batch"]:,}; batches to do again: {resume["lost_batches"]}'
            )
        if code is None:
            return False
        if code == PREEMPTED:
            saved = last_record(self.folder / 'events.jsonl', event='save').get('path', '')
            tell(f'  {self.name} left with code {code}, "start me again"; saved {saved}. Starting the same command:')
            self.start()
            return False
        if self.bar is not None:
            self.bar.close()
        if code:
            print(''.join(self.log.read_text(errors='replace').splitlines(keepends=True)[-30:]), file=sys.stderr)
            print(f'{self.name} failed with code {code}; all it said is in {self.log}', file=sys.stderr)
            raise SystemExit(code if code > 0 else 1)
        _, account = self.progress()
        tell(f'  {self.name} finished: {account}')
        return True


def tell(text: str) -> None:
    """Prints a line above the bars."""
    tqdm.write(f'\r{text}' if ON_A_TERMINAL else text, file=sys.stdout)  # a closed bar may leave the cursor at its end
    sys.stdout.flush()


def train_all(trainings: list[Training]) -> None:
    """Runs all, two at a time, each as soon as the checkpoint that it starts from is there.

    Args:
        trainings (list[Training]): The runs, in the order in which they may start.
    """
    waiting, running = list(trainings), []
    drawn_at = time.monotonic()
    try:
        while waiting or running:
            startable = [training for training in waiting if training.ready][: AT_A_TIME - len(running)]
            for training in startable:
                waiting.remove(training)
                training.start()
                running.append(training)
            if not running:
                raise SystemExit(f'{waiting[0].name} needs {waiting[0].waits_for}, which no run has written')
            time.sleep(LOOK_EVERY)
            running = [training for training in running if not training.check()]
            for training in running:
                training.preempt_if_due()
            if ON_A_TERMINAL or time.monotonic() - drawn_at > SIGNS_OF_LIFE:
                drawn_at = time.monotonic()
                for training in running:
                    training.draw()
    finally:
        stop([training.process for training in running if training.process is not None])


def stop(processes: list[subprocess.Popen]) -> None:
    """Lets processes save and leave, if they still run."""
    for process in processes:
        process.terminate()  # does nothing to one that has ended
    for process in processes:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def on_signals() -> None:
    """Makes the signals that end a process end this one in order, so that no run outlives the demo."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


def start_over(folders: list[Path]) -> None:
    """Removes what an earlier demo left, and says so."""
    old = [folder for folder in folders if folder.exists()]
    if old:
        print(f'Removing what an earlier demo left: {", ".join(map(str, old))}')
    for folder in old:
        shutil.rmtree(folder)


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description='Shows forgetting and recovery on real text, on a CPU.')
    parser.add_argument('--quick', action='store_true', help='the two-stage run alone, shorter: under two minutes')
    parser.add_argument('--figure', type=Path, help="also draw the README's figure there (.svg or .png)")
    arguments = parser.parse_args()
    on_signals()
    os.chdir(ROOT)
    names = ('quick',) if arguments.quick else ARMS
    trainings = [Training(name, sigterm=name == names[0]) for name in names]
    folders = [training.folder for training in trainings]
    start_over([DATA, *folders, Path('runs/demo-logs')])

    headline('Text and tokenizer, from the standard library of this Python')
    run([sys.executable, 'scripts/demo/corpus.py', str(DATA / 'text')])

    headline('Text -> tokens -> shards')
    for name in DATASETS if not arguments.quick else QUICK_DATASETS:
        options = ['--tokenizer', DATA / 'text/tokenizer.json', '--seq-len', '128']
        run(rewarm('convert', DATA / f'text/{name}.jsonl', DATA / name, *options))

    headline('What the run will do')
    run(rewarm('plan', f'yamls/demo/{names[0]}.yaml'))

    headline('Training: ' + ', '.join(names))
    train_all(trainings)

    headline('Report')
    page = Path('runs/demo.html')
    run(rewarm('report', *folders, '--out', page))
    if arguments.figure:
        print(f'README figure: {write_figure(folders, arguments.figure)}')
    print()
    print('\n'.join(summary(folders)))
    headline(f'Done. Open {page.resolve()}')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        print('\nStopped. The next demo starts over.', file=sys.stderr)
        raise SystemExit(130) from None

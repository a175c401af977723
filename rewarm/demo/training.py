"""The demo's runs as processes: two at a time, each as soon as the checkpoint that it starts from is there.

One of them is preempted by a real SIGTERM and started again. Where a run is, its run folder tells.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.formats.records import BATCHES, EVALUATIONS, EVENTS, Damage, Event, Kind, Record, read_lines

__all__ = ['Training', 'rewarm', 'shown', 'train_all']

AT_A_TIME = 2  # one thread each
PREEMPTED = 75  # rewarm's exit code for "saved; start me again"
SIGTERM_AT = 0.15  # of the second stage, while the rate is near its peak
LOOK_EVERY = 0.5  # seconds between two looks at the processes
SIGNS_OF_LIFE = 10  # seconds between lines where there is no terminal to draw bars on
LAST_BYTES = 8192  # of a file of records: enough for its newest lines
ON_A_TERMINAL = sys.stderr.isatty()
LOGS = Path('runs/demo-logs')


def rewarm(*arguments: str | Path) -> list[str]:
    """The command line of ``rewarm`` in this environment, wherever it was installed to."""
    return [sys.executable, '-P', '-m', 'rewarm', *map(str, arguments)]  # -P: files of this folder are no modules


def shown(command: list[str]) -> str:
    """A command as a user would type it."""
    return '$ ' + shlex.join(command[command.index('rewarm') :] if 'rewarm' in command else command)


class Training:
    """One run: the ``rewarm train`` process of the moment.

    Args:
        name (str): A file in ``yamls/demo``.
        sigterm (bool): Whether to preempt it once, in the middle.
    """

    def __init__(self, name: str, *, sigterm: bool = False) -> None:
        path = f'yamls/demo/{name}.yaml'
        config = load(path, world_size=1)
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
        self.resumes = 0
        self.log = LOGS / f'{name}.log'

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
        batches = self._newest(BATCHES, 'metrics.jsonl')
        if not batches:
            return 0, 'starting'
        now = batches[-1]
        facts = [now.stage, f'rate {now.lr:.1e}', f'loss {now.loss:.2f}']
        losses = {each.set: each.loss for each in self._newest(EVALUATIONS, 'evals.jsonl')}
        facts += [f'{name} {losses[name]:.2f}' for name in ('old', 'new') if name in losses]
        return now.batch, ', '.join(facts)

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
        resumes = self._events('resume')
        for resume in resumes[self.resumes :]:
            again = resume.fields.get('lost_batches')
            tell(f'  {self.name} went on behind batch {resume.batch:,}; batches to do again: {again}')
        self.resumes = len(resumes)
        if code is None:
            return False
        if code == PREEMPTED:
            saved = [event.fields.get('path') for event in self._events('save')][-1:]
            tell(
                f'  {self.name} left with code {code}, "start me again"; saved {"".join(map(str, saved))}. Starting the same command:'
            )
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

    def _newest(self, kind: Kind[Record], file: str) -> list[Record]:
        return read_lines(kind, self.folder / file, Damage(file), last_bytes=LAST_BYTES)

    def _events(self, name: str) -> list[Event]:
        return [each for each in read_lines(EVENTS, self.folder / 'events.jsonl', Damage('')) if each.event == name]


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

"""Random faults for some minutes: a two-stage run on two ranks and S3 storage, broken again and again, then compared.

    make soak MINUTES=5 SEED=1

Each start of the run meets a fault drawn from the seed: processes killed, told to go or frozen, the S3 server killed;
before the next start, files are damaged here or in the bucket, or the whole disk is lost. When the run is finished, its losses,
rates, samples, evaluations and weights must be those of a run that nothing ever happened to, bit for bit; then the next run begins.
The seed fixes the faults and their batches; what they hit is left to the clock, as it is in life.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from composer.utils.collect_env import get_cpu_model

from rewarm.config.load import load
from rewarm.resume.store import working_folder
from tests.buckets.servers import BUCKET, S3Server
from tests.end_to_end.conftest import ROOT, Run
from tests.end_to_end.forked import Ranks

RANKS = 2
BATCHES = 100
SETTINGS = [
    f'stages.0.max_duration={BATCHES}ba',
    f'stages.1.max_duration={BATCHES}ba',
    'stages.0.schedule.warmup=10ba',
    'stages.1.schedule.warmup=10ba',
    'eval.interval=40ba',
    'checkpoints.interval=5ba',
]
SURVIVORS_LEAVE_SECONDS = 60
STILL_SECONDS = 300
"""A start hangs if neither its log nor its folder nor the bucket has changed for as long; a busy machine alone is no fault."""
IDLE_STARTS = 5
"""As many starts in a row that ask for another one and train nothing are a fault."""
LAUNCHER_WAITS_SECONDS = 30  # after a rank has failed, as `composer` does
GOOD_CODES = {0, 75, -signal.SIGKILL}


class Broken(Run):
    """The run that faults happen to.

    Args:
        path (Path): Where its run file and log go.
        data (Path): Shards and tokenizer.
        server (S3Server): Its bucket's server.
        number (int): Which run of this soak it is.
        draw (random.Random): Draws the faults.
    """

    def __init__(self, path: Path, data: Path, server: S3Server, number: int, draw: random.Random) -> None:
        super().__init__(path, data)
        self.log = path / 'log'
        self.server = server
        self.number = number
        self.draw = draw
        self.settings = [*SETTINGS, f'run_folder=s3://{BUCKET}/run-{number}']
        self.folder = working_folder(load(self.file, self.settings))
        self.done_before = 0
        self.repeated = 0

    def batches(self) -> int:
        """How many batches the records hold; while another process rewrites them, as many as can be read."""
        try:
            return (self.folder / 'metrics.jsonl').read_bytes().count(b'\n')
        except OSError:
            return 0

    def live(self) -> tuple[str, bool]:
        """One start, its fault, and the end of its processes.

        Returns:
            tuple[str, bool]: The fault, and whether the run is finished.
        """
        workers = self.draw.choice([0, 1])
        name, fault = self.draw.choice(FAULTS)
        wanted = self.done_before + self.draw.randint(0, 40)
        faulty = wanted < 2 * BATCHES  # otherwise this start may finish the run
        starts = self._starts()
        ranks = Ranks(self.file, [*self.settings, f'data.num_workers={workers}'], count=RANKS, log=self.log)
        every_rank = list(range(RANKS))
        self._watch(ranks, until=lambda: ranks.running() != every_rank or (faulty and self.batches() >= wanted))
        self._note(f'{self.batches()} batches, {name}')
        fault(self, ranks)
        self._note(f'the S3 server is {"down" if self.server.process is None else "up"}')
        self._wait_for_the_end(ranks, watched=self._starts() > starts)
        assert set(ranks.codes.values()) <= GOOD_CODES, f'exit codes {ranks.codes} after: {name}'
        resumed = [e['batch'] for e in self.lines('events') if e['event'] in ('resume', 'run_start')]
        self.repeated += max(0, self.done_before - (resumed[-1] if resumed else 0))
        self.done_before = self.batches()
        return name, set(ranks.codes.values()) == {0}

    def _starts(self) -> int:
        return sum(event['event'] == 'run_start' for event in self.lines('events'))

    def finish(self) -> None:
        """Starts it without a fault until it is finished; one that asks to be started again has its reasons."""
        idle = 0
        while True:
            before = self.batches()
            ranks = Ranks(self.file, self.settings, count=RANKS, log=self.log)
            self._watch(ranks)
            codes = set(ranks.codes.values())
            if codes == {0}:
                return
            idle = 0 if self.batches() > before else idle + 1
            assert codes == {75}, f'exit codes {ranks.codes} without a fault'
            assert idle < IDLE_STARTS, f'{idle} starts have trained nothing and ask for another one'

    def _watch(self, ranks: Ranks, until: Callable[[], bool] = lambda: False) -> None:
        ranks.wait_while_it_moves(self._progress, STILL_SECONDS, until)

    def _progress(self) -> tuple[int, ...]:
        """Bytes of the log, of the records and in the bucket."""
        records = [self.folder / f'{name}.jsonl' for name in ('metrics', 'evals', 'events')]
        stored = (self.server.folder / BUCKET / f'run-{self.number}').rglob('*')
        return (*(_size(path) for path in (self.log, *records)), sum(map(_size, stored)))

    def _wait_for_the_end(self, ranks: Ranks, *, watched: bool) -> None:
        """Once they watch each other, the ranks leave by themselves; before that, their launcher ends those that are left."""
        if not watched:
            end = time.monotonic() + LAUNCHER_WAITS_SECONDS
            while ranks.running() and time.monotonic() < end:
                time.sleep(0.02)
            for rank in ranks.running():
                ranks.send(rank, signal.SIGKILL)
        self._watch(ranks)

    def _note(self, text: str) -> None:
        with self.log.open('a') as log:
            print(f'\n### {text}', file=log)


def _size(path: Path) -> int:
    """Bytes of a file; 0 for what is not there or is being replaced."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def kill_all(run: Broken, ranks: Ranks) -> None:
    for rank in range(RANKS):
        ranks.send(rank, signal.SIGKILL)


def kill_one(run: Broken, ranks: Ranks) -> None:
    ranks.send(run.draw.randrange(RANKS), signal.SIGKILL)


def tell_all(run: Broken, ranks: Ranks) -> None:
    for rank in range(RANKS):
        ranks.send(rank, signal.SIGTERM)


def tell_one(run: Broken, ranks: Ranks) -> None:
    ranks.send(run.draw.randrange(RANKS), signal.SIGTERM)


def tell_and_kill(run: Broken, ranks: Ranks) -> None:
    tell_all(run, ranks)
    time.sleep(run.draw.uniform(0, 0.2))
    kill_all(run, ranks)


def freeze_one(run: Broken, ranks: Ranks) -> None:
    frozen = run.draw.randrange(RANKS)
    ranks.send(frozen, signal.SIGSTOP)
    end = time.monotonic() + SURVIVORS_LEAVE_SECONDS
    while [rank for rank in ranks.running() if rank != frozen] and time.monotonic() < end:
        time.sleep(0.05)
    ranks.send(frozen, signal.SIGKILL)


def lose_the_server(run: Broken, ranks: Ranks) -> None:
    run.server.kill()
    time.sleep(run.draw.uniform(0, 3))
    kill_all(run, ranks)
    run.server.start()


def lose_the_server_for_a_while(run: Broken, ranks: Ranks) -> None:
    run.server.kill()
    time.sleep(run.draw.uniform(0, 2))
    run.server.start()
    time.sleep(run.draw.uniform(0, 1))
    kill_all(run, ranks)


FAULTS: list[tuple[str, Callable[[Broken, Ranks], None]]] = [
    ('all ranks killed', kill_all),
    ('one rank killed', kill_one),
    ('all ranks told to go', tell_all),
    ('one rank told to go', tell_one),
    ('told to go, and killed during the save', tell_and_kill),
    ('one rank frozen', freeze_one),
    ('S3 server and ranks killed', lose_the_server),
    ('S3 server killed and started again, ranks killed', lose_the_server_for_a_while),
]


def lose_the_disk(run: Broken) -> bool:
    shutil.rmtree(run.folder, ignore_errors=True)
    return True


def damage(change: Callable[[Path], object], newest_of: Callable[[Broken], list[Path]]) -> Callable[[Broken], bool]:
    """A fault of storage: changes a file of the newest checkpoint, if there is an older one to fall back to."""

    def apply(run: Broken) -> bool:
        found = newest_of(run)
        if len(found) < 2:
            return False
        files = sorted(path for path in found[-1].iterdir() if path.stat().st_size)
        change(run.draw.choice(files))
        return True

    return apply


def local_checkpoints(run: Broken) -> list[Path]:
    return sorted((run.folder / 'checkpoints').glob('ba????????'))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def set_latest_wrong(run: Broken) -> bool:
    latest = run.folder / 'checkpoints' / 'latest'
    if not latest.exists():
        return False
    latest.write_text('ba99999999\n')
    return True


STORAGE_FAULTS: list[tuple[str, Callable[[Broken], bool]]] = [
    ('disk lost', lose_the_disk),
    ('newest checkpoint: a bit flipped', damage(flip_a_bit, local_checkpoints)),
    ('newest checkpoint: a file truncated', damage(truncate, local_checkpoints)),
    ('newest checkpoint: a file of zeros', damage(fill_with_zeros, local_checkpoints)),
    ('newest checkpoint: a file gone', damage(Path.unlink, local_checkpoints)),
    ('`latest` wrong', set_latest_wrong),
]


def soak(minutes: float, seed: int, folder: Path, say: Callable[[str], None]) -> collections.Counter[str]:
    """Breaks runs for some minutes; the last one is let finish.

    Args:
        minutes (float): How long.
        seed (int): Of the faults.
        folder (Path): Where everything goes.
        say (Callable): Prints a line.

    Returns:
        Counter: Faults survived, by kind.

    Raises:
        AssertionError: If a run does not end as the unbroken one did.
    """
    draw = random.Random(seed)
    get_cpu_model()  # cached for the ranks: Composer asks for it at each start, and it takes a second
    data = folder / 'data'
    data.mkdir()
    # By itself: a converter's workers import what the script that starts them imports.
    convert = f"from pathlib import Path; from tests.end_to_end.conftest import make_data; make_data(Path('{data}'))"
    subprocess.run([sys.executable, '-c', convert], cwd=ROOT, check=True, capture_output=True, timeout=1200)
    unbroken = Run(folder / 'unbroken', data)
    whole = Ranks(unbroken.file, SETTINGS, count=RANKS, log=folder / 'unbroken' / 'log')
    whole.wait_while_it_moves(lambda: _size(unbroken.folder / 'metrics.jsonl'), STILL_SECONDS)
    assert set(whole.codes.values()) == {0}, (folder / 'unbroken' / 'log').read_text()[-3000:]
    server = S3Server(folder / 's3')
    os.environ |= server.variables
    survived: collections.Counter[str] = collections.Counter()
    starts = repeated = runs = 0
    started = time.monotonic()
    try:
        while time.monotonic() < started + minutes * 60:
            runs += 1
            run = Broken(folder / f'run-{runs}', data, server, runs, draw)
            try:
                found = _break(run, started + minutes * 60)
                _compare(run, unbroken)
            except AssertionError:
                say((run.log.read_text() if run.log.exists() else '')[-6000:])
                raise
            survived += found
            starts += found.total()
            repeated += run.repeated
            say(f'run {runs}: {found.total()} faults, {run.repeated} batches repeated, equal to the unbroken run')
    finally:
        server.kill()
    say(f'{survived.total()} faults survived in {runs} runs of {2 * BATCHES} batches; {repeated} batches were repeated')
    for name, count in survived.most_common():
        say(f'{count:5} {name}')
    return survived


def _break(run: Broken, until: float) -> collections.Counter[str]:
    """Starts a run until it is finished, with a fault each time while there is time."""
    found: collections.Counter[str] = collections.Counter()
    while True:
        if time.monotonic() > until:
            run.finish()
            return found
        name, finished = run.live()
        if finished:
            return found
        found[name] += 1
        if run.draw.random() < 0.4:
            name, fault = run.draw.choice(STORAGE_FAULTS)
            happened = fault(run)
            found[name] += happened
            run._note(f'{name}: {"done" if happened else "nothing to do it to"}')


def _compare(run: Run, unbroken: Run) -> None:
    assert run.losses() == unbroken.losses(), 'losses, rates or samples differ'
    assert sorted(run.evals()) == sorted(unbroken.evals()), 'evaluations differ'
    assert run.weights() == unbroken.weights(), 'weights differ'
    begun = [event['stage'] for event in run.lines('events') if event['event'] == 'stage_start']
    assert sorted(set(begun)) == ['first', 'second']


def main() -> None:
    """Soaks, and prints what was survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=5, help='how long (default: 5)')
    parser.add_argument('--seed', type=int, default=1, help='of the faults (default: 1)')
    options = parser.parse_args()
    print(f'seed {options.seed}, {options.minutes:g} minutes', flush=True)
    with tempfile.TemporaryDirectory(prefix='soak-', dir='/tmp') as folder:
        tempfile.tempdir = folder  # the runs' own folders go there too
        soak(options.minutes, options.seed, Path(folder), lambda text: print(text, flush=True))


if __name__ == '__main__':
    main()

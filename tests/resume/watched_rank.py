"""One rank under a watchdog, as a program: it trains three batches and then does what a test asks for.

python watched_rank.py RANK WORLD_SIZE FOLDER SETTINGS WHAT [SECONDS]
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.resume.watchdog import Watchdog


class Rank:
    def __init__(self, rank: int, world_size: int, folder: Path, settings: dict) -> None:
        self.rank = rank
        self.world_size = world_size
        self.folder = folder
        self.watchdog = Watchdog(
            rank=rank, world_size=world_size, agree=self.agree, folder=folder, record=self.record, **settings
        )

    def agree(self, function):
        file = self.folder / 'agreed.json'
        if self.rank == 0:
            (self.folder / 'agreed.tmp').write_text(json.dumps(function()))
            (self.folder / 'agreed.tmp').rename(file)
        while not file.exists():
            time.sleep(0.01)
        return tuple(json.loads(file.read_text()))

    def record(self, event: str, **fields) -> None:
        with (self.folder / f'events{self.rank}.jsonl').open('a') as file:
            file.write(json.dumps({'event': event, **fields}) + '\n')

    def run(self, what: str, seconds: float) -> int:
        with self.watchdog:
            for batch in range(1, 4):
                self.watchdog.progress(f'forward of batch {batch}')
                self.watchdog.progress(f'end of batch {batch}', settled=True)
            time.sleep(0.6)  # three messages, as batches of some length
            (self.folder / f'ready{self.rank}').touch()
            return getattr(self, what)(seconds)

    def train(self, seconds: float) -> int:
        """Makes progress until the test says stop."""
        while not any((self.folder / name).exists() for name in ('stop', f'stop{self.rank}')):
            self.watchdog.progress('forward of batch 4')
            time.sleep(0.02)
        return 0

    def wait(self, seconds: float) -> int:
        """Further than the rank that hangs, as in a collective that never returns."""
        self.watchdog.progress('forward of batch 4')
        self.watchdog.progress('backward of batch 4')
        time.sleep(600)
        return 0

    def sleep(self, seconds: float) -> int:
        self.watchdog.progress('forward of batch 4')
        time.sleep(600)
        return 0

    def hold_the_lock(self, seconds: float) -> int:
        self.watchdog.progress('forward of batch 4')
        ctypes.PyDLL(None).sleep(600)
        return 0

    def start_slowly(self, seconds: float) -> int:
        self.watchdog.progress('start of a stage', settled=False)
        time.sleep(seconds)
        return 0

    def save(self, seconds: float) -> int:
        """Long, without progress; then everything goes on."""
        self.watchdog.progress('checkpoint after batch 3')
        time.sleep(seconds)
        return self.train(0)

    def fail(self, seconds: float) -> int:
        self.watchdog.progress('forward of batch 4')
        raise ValueError('the data is bad')

    def refuse(self, seconds: float) -> int:
        raise UserError('stages.0: the data is not there')

    def finish(self, seconds: float) -> int:
        return 0

    def leave_orphan(self, seconds: float) -> int:
        """As a loader worker that outlives its rank."""
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        return self.train(0)

    def all_reduce(self, seconds: float) -> int:
        """Real collectives until one fails; the last rank fails by itself if there are seconds."""
        import torch
        from torch import distributed

        distributed.init_process_group(
            'gloo', init_method=f'file://{self.folder}/group', rank=self.rank, world_size=self.world_size
        )
        (self.folder / f'collective{self.rank}').touch()
        until = time.monotonic() + seconds
        try:
            while not (self.folder / 'stop').exists():
                self.watchdog.progress('backward of batch 4')
                distributed.all_reduce(torch.ones(1000))
                if seconds and self.rank == self.world_size - 1 and time.monotonic() > until:
                    raise ValueError('the data is bad')
        except RuntimeError as error:
            started = time.monotonic()
            cause = self.watchdog.explain(error)
            took = time.monotonic() - started
            (self.folder / f'explained{self.rank}').write_text(json.dumps([took, cause and cause.text]))
            if cause is None:
                raise
            return cause.exit_code
        return 0


if __name__ == '__main__':
    number, size, where, how, action, *rest = sys.argv[1:]
    if action == 'all_reduce':
        import torch.distributed  # noqa: F401  (as in a real run, before the watch begins)
    rank = Rank(int(number), int(size), Path(where), json.loads(how))
    try:
        code = rank.run(action, float(rest[0]) if rest else 0)
        (rank.folder / f'left{rank.rank}').touch()
        sys.exit(code)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

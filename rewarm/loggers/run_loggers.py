"""The loggers of a run file, from the first Trainer of a start to its end."""

import functools
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from composer.loggers import LoggerDestination
from composer.utils import dist

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.loggers import check_client, is_local
from rewarm.config.schema import RunConfig
from rewarm.formats.logger_files import Identity, read_identity, write_identity
from rewarm.loggers.destination import Destination
from rewarm.loggers.failures import Failures, reason_of
from rewarm.loggers.guard import Guard
from rewarm.loggers.held import HeldFile
from rewarm.loggers.relay import Relay

__all__ = ['RunLoggers', 'ensure_identity']

FIRST_ANSWER_SECONDS = 60.0
"""How long a run's first start waits for its loggers, in case the user has to hear of a wrong key."""


def ensure_identity(folder: Path, *, say: Callable[[str], None]) -> Identity:
    """The identity of the run in a folder; drawn now if this is its first start. For the rank that holds the run.

    Args:
        folder (Path): The run's.
        say (Callable[[str], None]): Told of a damaged one, which does not cost the run.

    Raises:
        OSError: If the disk is full or not writable.
    """
    identity = None
    try:
        identity = read_identity(folder)
    except DamagedFile as error:
        say(f'{error}. Loggers begin another run of theirs.')
    if identity is None:
        identity = Identity(id=secrets.token_hex(16))
        write_identity(folder, identity)
    return identity


class RunLoggers:
    """Builds the loggers of a run file and keeps them through stages and rollbacks, each behind a guard.

    Args:
        config (RunConfig): The run file.
        folder (Path): The run folder on this node.
        record (Callable): Writes an event, on rank 0.
        say (Callable[[str], None]): Tells the user something, on any rank.
        seconds_left (Callable[[], float]): What there is left to finish in, asked at the end.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        record: Callable[..., None],
        say: Callable[[str], None],
        seconds_left: Callable[[], float],
    ) -> None:
        self._config = config
        self._folder = folder
        self._record = record
        self._say = say
        self._seconds_left = seconds_left
        self._guards: list[Guard] = []
        self._is_open = False

    def __enter__(self) -> 'RunLoggers':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def go_on(self, identity: Identity, batch: int, *, trained: bool) -> None:
        """Connects them, or says to those that are there that the run goes on from an earlier batch. On every rank.

        A run's first start waits for each to connect. A later one does not, and goes on without one that cannot.

        Args:
            identity (Identity): The run's.
            batch (int): Batches behind the run.
            trained (bool): Whether the run has trained, in this or an earlier start.

        Raises:
            UserError: On every rank, if one of a run that has not trained cannot be had.
        """
        if self._is_open:
            for guard in self._guards:
                guard.go_back(batch)
            return
        self._is_open = True
        for name, arguments in self._config.loggers.items():
            if dist.get_global_rank() == 0 or not arguments.get('rank_zero_only', name not in ('file', 'in_memory')):
                self._guards.append(self._guard(name, identity, batch))
        for guard in self._guards:
            guard.start(batch)
        if not trained and self._config.loggers:
            self._refuse()

    def destinations(self) -> list[LoggerDestination]:
        """What to give to a Trainer, which closes it."""
        return [Relay(self._guards)] if self._guards else []

    def close(self, *, failed: bool) -> None:
        """Lets them finish, all at once, in the time that is left."""
        for guard in self._guards:
            guard.begin_to_close(failed=failed)
        ends_at = time.monotonic() + self._seconds_left()
        for guard in self._guards:
            guard.wait_until_closed(ends_at)
        self._guards = []

    def _guard(self, name: str, identity: Identity, batch: int) -> Guard:
        rank = dist.get_global_rank()
        mine = identity.id if rank == 0 else f'{identity.id[:24]}r{rank:07d}'
        guard = Guard(
            name,
            functools.partial(self._build, name, mine, batch, lambda call: guard.put_call(call)),
            folder=self._folder,
            held=HeldFile(self._folder / 'loggers' / f'{name}-rank{rank}.json'),
            failures=Failures(name, record=self._record, say=self._say),
        )
        return guard

    def _build(self, name: str, run_id: str, batch: int, pass_on: Callable[..., object]) -> Destination:
        """Makes a logger; on its thread, with the client imported there."""
        arguments: dict[str, Any] = dict(self._config.loggers[name])
        run_name, folder = self._config.run_name, self._folder
        check_client(name)
        if name != 'file' and not is_local(name) and dist.get_global_rank() != 0:
            run_name += f'-rank{dist.get_global_rank()}'
        match name:
            case 'tensorboard':
                from rewarm.loggers.tensorboard import TensorBoard

                return TensorBoard(run_name, **{'log_dir': str(folder / name), **arguments})
            case 'wandb':
                from rewarm.loggers.weights_and_biases import WeightsAndBiases

                return WeightsAndBiases(run_name, run_id, folder, **arguments)
            case 'mlflow':
                from rewarm.loggers.mlflow_run import MLflow

                return MLflow(run_name, run_id, folder, **arguments)
            case 'neptune':
                from rewarm.loggers.neptune import Neptune

                return Neptune(run_name, run_id, **arguments)
            case 'comet_ml':
                from rewarm.loggers.comet import Comet

                return Comet(run_name, run_id, **arguments)
            case 'file':
                from rewarm.loggers.local import TextLog

                text_log = TextLog(run_name, filename=_text_log(folder / name, batch), **arguments)
                text_log.pass_on = pass_on
                return text_log
            case _:
                from rewarm.loggers.local import InMemory

                return InMemory(run_name)

    def _refuse(self) -> None:
        ends_at = time.monotonic() + FIRST_ANSWER_SECONDS
        errors = [(guard.name, guard.refusal(ends_at)) for guard in self._guards]
        mine = [f'loggers.{name}: {reason_of(error)}' for name, error in errors if error is not None]
        if found := [text for texts in dist.all_gather_object(mine) for text in texts]:
            for guard in self._guards:
                guard.give_up()
            raise UserError('\n'.join(dict.fromkeys(found)))


def _text_log(folder: Path, batch: int) -> str:
    """Composer's format of a file name; no start overwrites another's."""
    begins = f'{folder}/ba{batch:08d}-{time.strftime("%Y%m%dT%H%M%S")}'
    return begins.replace('{', '{{').replace('}', '}}') + '-rank{rank}.txt'

"""Shows an evaluation while it goes on, and says when a set is read to another length than before."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist
from tqdm import tqdm

from rewarm.formats.records import EVALUATIONS
from rewarm.report.records import Events, JsonLines

__all__ = ['EvaluationProgress']

PIPE_SECONDS = 30
"""Between two lines where nobody watches a bar, such as in a log file."""


class EvaluationProgress(Callback):
    """Draws a bar of each evaluation's tokens, and records ``eval_start`` and ``eval_end``.

    Args:
        run_folder (Path): The run's folder.
        events (Events): ``events.jsonl``.
        say (Callable[[str], None]): Prints a line, on rank 0.
        sets (Mapping[str, int]): Tokens of each set.
    """

    def __init__(
        self, run_folder: Path, events: Events, say: Callable[[str], None], *, sets: Mapping[str, int]
    ) -> None:
        self.lines = JsonLines(run_folder / 'evals.jsonl', EVALUATIONS)
        self.events = events
        self.say = say
        self.sets = sets
        self._started = time.monotonic()
        self._bar: tqdm | None = None
        self._before: dict[str, int] | None = None

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        """Says that it begins: before a stage's first batch nothing else is shown."""
        self._begin(state)
        names, tokens = self._names(state), self._tokens(state)
        self.say(f'Evaluating {", ".join(names)}: {tokens:,} tokens, at batch {int(state.timestamp.batch):,}.')

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Begins one within a stage."""
        self._begin(state)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Names the set."""
        if self._bar is not None:
            self._bar.set_postfix_str(str(state.dataloader_label), refresh=False)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Counts a batch on each rank."""
        if self._bar is not None:
            tokens = state.batch['input_ids'].numel() * dist.get_world_size()
            self._bar.update(min(tokens, int(self._bar.total) - int(self._bar.n)))  # the last one is filled up

    def eval_end(self, state: State, logger: Logger) -> None:
        """Compares the tokens of a set with those of its last evaluation."""
        name = str(state.dataloader_label)
        tokens = int(state.eval_metrics[name]['targets'].compute())  # of all ranks, so all of them ask
        if dist.get_global_rank() != 0:
            return
        if self._before is None:
            self._before = {line.set: line.tokens_evaluated for line in self.lines.read() if line.tokens_evaluated}
        before = self._before.get(name, tokens)
        if before != tokens:
            self.events.record('eval_size_changed', **self._where(state), set=name, was=before, now=tokens)
            self.say(
                f'warning: `{name}` is evaluated on {tokens:,} tokens from here on, and was on {before:,}: its losses before '
                'and after cannot be compared'
            )
        self._before[name] = tokens

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Ends one within a stage."""
        self._end(state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """Ends one of its own."""
        self._end(state)

    def close(self, state: State, logger: Logger) -> None:
        """Closes the bar of one that was broken off."""
        self._close()

    def _begin(self, state: State) -> None:
        self._started = time.monotonic()
        names, tokens = self._names(state), self._tokens(state)
        self.events.record('eval_start', **self._where(state), sets=names, evaluated_tokens=tokens)
        if dist.get_global_rank() == 0:
            interactive = sys.stderr.isatty()
            self._bar = tqdm(
                total=tokens,
                desc='evaluating',
                unit='tok',
                unit_scale=True,
                leave=False,
                dynamic_ncols=interactive,
                mininterval=0.5 if interactive else PIPE_SECONDS,
                delay=0.5 if interactive else PIPE_SECONDS,  # what is soon over needs no line
            )

    def _end(self, state: State) -> None:
        self._close()
        seconds = round(time.monotonic() - self._started, 3)
        self.events.record('eval_end', **self._where(state), sets=self._names(state), seconds=seconds)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _names(self, state: State) -> list[str]:
        return [each.label for each in state.evaluators]

    def _tokens(self, state: State) -> int:
        return sum(self.sets[name] for name in self._names(state))

    def _where(self, state: State) -> dict[str, int]:
        return {'batch': int(state.timestamp.batch), 'tokens': int(state.timestamp.token)}

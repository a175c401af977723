"""What validation takes: the tokens of a round, how many rounds there are, and their share of a run's work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewarm.config.data_cards import count_samples
from rewarm.config.schema import RunConfig
from rewarm.config.stages import StagePlan

TRAINING_PASSES = 3
"""Forward passes that a trained token costs: one, and a backward pass of twice as much. An evaluated one costs one."""

LARGE_SHARE = 0.2
"""Of the work of a run, above which its evaluations are warned of."""


@dataclass(frozen=True)
class Evaluations:
    """All evaluations of a run.

    Args:
        samples (Mapping[str, int | None]): Samples that are read of each set in a round; None where its data is not here.
        seq_len (int): Tokens of a sample.
        rounds (int): Times that all sets are evaluated.
        trained_tokens (int): Tokens that the run trains on.
        parts (Mapping[str, int]): Samples of sets of which only the first are read, in the whole set.
    """

    samples: Mapping[str, int | None] = field(hash=False)
    seq_len: int
    rounds: int
    trained_tokens: int
    parts: Mapping[str, int] = field(hash=False, default_factory=dict[str, int])

    @property
    def unknown(self) -> list[str]:
        """Sets whose size is not known on this machine."""
        return [name for name, samples in self.samples.items() if samples is None]

    @property
    def tokens_per_round(self) -> int:
        """Tokens of one round, of the sets whose size is known."""
        return sum(samples or 0 for samples in self.samples.values()) * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of all rounds."""
        return self.rounds * self.tokens_per_round

    @property
    def share_of_tokens(self) -> float:
        """Their share of all tokens that go through the model, in [0, 1]."""
        return self.tokens / (self.tokens + self.trained_tokens)

    @property
    def share_of_work(self) -> float:
        """Their share of the run's arithmetic, and about of its time, in [0, 1]."""
        return self.tokens / (self.tokens + TRAINING_PASSES * self.trained_tokens)

    def seconds(self, tokens_per_second: float) -> float:
        """Time they take.

        Args:
            tokens_per_second (float): Speed of training, of all GPUs together.

        Returns:
            float: Seconds, if a token costs a third of one that is trained.
        """
        return self.tokens / (TRAINING_PASSES * tokens_per_second)

    def note(self) -> str | None:
        """What reading only parts of sets means; None where all are read whole."""
        if not self.parts:
            return None
        parts = ', '.join(f'{self.samples[name]:,} of {whole:,} in `{name}`' for name, whole in self.parts.items())
        return (
            f'`eval.max_samples`: of each set the first samples are read ({parts}); such losses have no bits per byte, since '
            'cards count the bytes of whole sets'
        )

    def warning(self) -> str | None:
        """What to say where evaluations take a large share of the run; None where they do not."""
        if self.share_of_work <= LARGE_SHARE:
            return None
        return (
            f'evaluations are {self.share_of_tokens:.0%} of all tokens that are computed and about {self.share_of_work:.0%} '
            f'of the work: {self.rounds:,} rounds of {self.tokens_per_round:,} tokens, beside {self.trained_tokens:,} that are '
            'trained. Write a longer `eval.interval`, or `eval.max_samples` to read only the first samples of each set'
        )


def plan_evaluations(config: RunConfig, stages: Sequence[StagePlan], interval_batches: int) -> Evaluations:
    """Counts a run's evaluations.

    Args:
        config (RunConfig): The settings.
        stages (Sequence[StagePlan]): The stages, worked out.
        interval_batches (int): Batches between two rounds within a stage.

    Returns:
        Evaluations: Sets of which nothing is on this machine are counted as far as `eval.max_samples` allows.
    """
    # Before the first batch, at each interval within a stage, and at its end, whose weights are those of the next start.
    rounds = 1 + sum(-(-stage.batches // interval_batches) for stage in stages)
    most, sets = config.eval.max_samples, config.eval.sets
    whole = {each.name: count_samples(each) for each in sets}
    return Evaluations(
        samples={each.name: samples_read(whole[each.name], most) for each in sets},
        seq_len=config.max_seq_len,
        rounds=rounds if sets else 0,
        trained_tokens=stages[-1].end_tokens,
        parts={name: samples for name, samples in whole.items() if most and samples and samples > most},
    )


def samples_read(samples: int | None, most: int | None) -> int | None:
    """Samples of a set that an evaluation reads.

    Args:
        samples (int | None): Those that it has; None if that is not known.
        most (int | None): ``eval.max_samples``.

    Returns:
        int | None: The smaller one; None if neither is known.
    """
    return min((each for each in (samples, most) if each is not None), default=None)

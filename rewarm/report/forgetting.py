"""Forgetting and adaptation: what a run did to the loss on old and on new data, stage by stage and over longer spans.

What is old in a stage follows from the stages: ``docs/forgetting.md`` has the words and an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.config.old_and_new import Told
from rewarm.report.outcome import Outcome, outcome
from rewarm.report.run_folder import Evaluation, Run, Stage
from rewarm.report.stories import Stories, find_stories

__all__ = ['Change', 'SetChanges', 'SetOutcome', 'by_set', 'set_changes', 'set_curve', 'set_outcomes']


@dataclass(frozen=True)
class SetOutcome:
    """The outcome of one stage for one evaluation set, with the evaluations at its start and end."""

    stage: Stage
    set: str
    told: Told
    """What the set is in the stage."""
    outcome: Outcome
    first: Evaluation
    last: Evaluation

    @property
    def old(self) -> bool:
        """Whether the set was old when the stage began: its change is forgetting, else adaptation."""
        return self.told.kind == 'old'


@dataclass(frozen=True)
class Change:
    """What became of a set's loss from one position to another, in nats per token."""

    before: float
    after: float
    old: bool
    """Whether the set's data had been learned before: then a higher loss is forgetting."""
    stage: str
    """The stage at whose start (of *since trained*: at whose end) the change begins."""
    since: str
    """The position at which it begins, in words: ``june began``, ``law ended``, ``the run began``."""

    @property
    def difference(self) -> float:
        """After minus before: positive if the loss is worse."""
        return self.after - self.before

    @property
    def forgetting(self) -> float | None:
        """How much worse on old data; ``None`` if the data was not old."""
        return self.difference if self.old else None

    @property
    def adaptation(self) -> float | None:
        """How much better on data that was not old; ``None`` if it was."""
        return None if self.old else -self.difference

    @property
    def word(self) -> str:
        """``forgetting`` or ``adaptation``."""
        return 'forgetting' if self.old else 'adaptation'

    def __str__(self) -> str:
        """The same in words: ``forgetting +0.362``."""
        return f'{self.word} {self.difference if self.old else -self.difference:+.3f}'


@dataclass(frozen=True)
class SetChanges:
    """What a run did to one evaluation set, told three ways."""

    set: str
    belongs_to: tuple[str, ...]
    """Names of the streams whose data it is, in this run."""
    stage: str
    """The stage of its newest evaluation."""
    loss: float
    """The newest, in nats per token."""
    told: dict[str, Told]
    """What the set is in each stage, by name, also in those to come."""
    last_stage: Change | None
    """Over the run's last stage."""
    since_trained: Change | None
    """Since the end of the last stage that trained its data for its own sake."""
    since_began: Change | None
    """Since the run began."""
    reasons: dict[str, str]
    """Why a change above is ``None``, by its name."""

    @property
    def kind(self) -> str:
        """``old``, ``new`` or ``unseen``, in the stage of the newest evaluation."""
        return self.told[self.stage].kind if self.stage in self.told else 'unseen'

    def old_in(self, stage: str) -> bool:
        """Whether its data had been learned before a stage."""
        return stage in self.told and self.told[stage].kind == 'old'


def by_set(run: Run) -> dict[str, list[Evaluation]]:
    """Evaluations by name of their set, oldest first; what the run has learned first of all comes first."""
    stories = find_stories(run)
    found: dict[str, list[Evaluation]] = {}
    for line in run.evaluations:
        found.setdefault(line.set, []).append(line)
    return dict(sorted(found.items(), key=lambda item: (_learned_at(stories, item[0]), item[0])))


def _learned_at(stories: Stories, name: str) -> int:
    """The number of the first stage in which a set is old; one more than there are if it is in none."""
    story = stories.sets.get(name)
    kinds = [told.kind for told in story.stages] if story else []
    return kinds.index('old') if 'old' in kinds else len(stories.stages)


def set_curve(run: Run, stage: Stage, name: str) -> list[tuple[int, float]]:
    """A set's losses in a stage, as far as they are of the same text as the last one.

    Where the stage's start was not evaluated, the end of the stage before has the same weights.
    """
    lines = [line for line in run.stage_evaluations(stage.name) if line.set == name]
    lines = [line for line in lines if _same_text(line, lines[-1])]
    curve = [(line.stage_tokens, line.loss) for line in lines]
    if curve and curve[0][0] > 0:
        at_start = [line for line in run.evaluations if (line.set, line.tokens) == (name, stage.start_tokens)]
        curve[:0] = [(0, line.loss) for line in at_start if _same_text(line, lines[-1])][:1]
    return curve


def _same_text(one: Evaluation, other: Evaluation) -> bool:
    """Whether two losses of a set are of as many tokens: of a part (``eval.max_samples``) and of the whole they do not compare."""
    lengths = {one.tokens_evaluated, other.tokens_evaluated} - {None}  # old runs did not record it
    return len(lengths) < 2


def set_outcomes(run: Run) -> list[SetOutcome]:
    """The outcome of every stage and evaluation set of a run, old sets first within a stage."""
    stories = find_stories(run)
    names = [*by_set(run)]
    results = []
    for stage in run.stages:
        untrained = stage.index == 0 and run.from_scratch
        found = []
        for name in names:
            mine = [line for line in run.stage_evaluations(stage.name) if line.set == name]
            if mine:
                curve = set_curve(run, stage, name)
                measured = outcome(curve, stage_tokens=stage.planned_tokens, untrained=untrained)
                found.append(SetOutcome(stage, name, stories.told(name, stage.name), measured, mine[0], mine[-1]))
        results += sorted(found, key=lambda entry: ('old', 'new', 'unseen').index(entry.told.kind))
    return results


def set_changes(run: Run) -> list[SetChanges]:
    """What the run did to each evaluation set: in its last stage, since the set's data was last trained, since it began.

    Args:
        run (Run): The run; nothing is guessed where an evaluation is missing.

    Returns:
        list[SetChanges]: One a set, first what was old first.
    """
    stories = find_stories(run)
    last = next((stage for stage in reversed(run.stages) if run.stage_evaluations(stage.name)), None)
    return [_changes(run, stories, name, lines, last) for name, lines in by_set(run).items() if last is not None]


class _Losses:
    """The losses of one set by tokens of the run, and the changes from them to the newest."""

    def __init__(self, lines: Sequence[Evaluation]) -> None:
        self.newest = lines[-1]
        self.at = {line.tokens: line.loss for line in lines if _same_text(line, self.newest)}
        self.of_other_text = {line.tokens: line for line in lines if not _same_text(line, self.newest)}
        self.reasons: dict[str, str] = {}

    def since(self, what: str, tokens: int, stage: str, when: str, *, old: bool) -> Change | None:
        """The change since a position, if it was evaluated there."""
        if tokens in self.at:
            return Change(self.at[tokens], self.newest.loss, old, stage, when)
        self.reasons[what] = f'not evaluated when {when}'
        if (other := self.of_other_text.get(tokens)) is not None:
            sizes = f'{other.tokens_evaluated:,} tokens when {when}, and on {self.newest.tokens_evaluated:,} now'
            self.reasons[what] = f'evaluated on {sizes}'
        return None


def _changes(run: Run, stories: Stories, name: str, lines: Sequence[Evaluation], last: Stage) -> SetChanges:
    losses = _Losses(lines)
    told = {stage: stories.told(name, stage) for stage in (*stories.stages, *(each.name for each in run.stages))}
    first, change = run.stages[0], None
    if losses.newest.stage == last.name:
        old = told[last.name].kind == 'old'
        change = losses.since('last_stage', last.start_tokens, last.name, f'{last.name} began', old=old)
    else:
        losses.reasons['last_stage'] = f'not evaluated in {last.name}'
    old = told[first.name].kind == 'old'
    began = losses.since('since_began', first.start_tokens, first.name, 'the run began', old=old)
    return SetChanges(
        set=name,
        belongs_to=stories.sets[name].belongs_to if name in stories.sets else (),
        stage=losses.newest.stage,
        loss=losses.newest.loss,
        told=told,
        last_stage=change,
        since_trained=_since_trained(run, told, losses, began),
        since_began=began,
        reasons=losses.reasons,
    )


def _since_trained(run: Run, told: dict[str, Told], losses: _Losses, began: Change | None) -> Change | None:
    """From the end of the last stage that trained the set's data for its own sake; of the starting weights' data, from there."""
    position = losses.newest.tokens
    done = [stage for stage in run.stages if stage.start_tokens < position] or [run.stages[0]]
    trained = [stage for stage in done if told[stage.name].trained == 'main']
    if trained and trained[-1] is done[-1]:
        losses.reasons['since_trained'] = f'{trained[-1].name} trains it'
        return None
    if trained:
        name, end = trained[-1].name, run.stages[trained[-1].index + 1].start_tokens
        return losses.since('since_trained', end, name, f'{name} ended', old=True)
    if told[run.stages[0].name].kind != 'old':
        losses.reasons['since_trained'] = 'it was not trained yet'
    elif began is None:
        losses.reasons['since_trained'] = losses.reasons['since_began']
    return began if told[run.stages[0].name].kind == 'old' else None

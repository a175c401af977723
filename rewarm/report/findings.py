"""The paper's findings, checked on runs that can be compared: which pairs those are, and what each pair shows.

Runs are told apart by what they are (:mod:`rewarm.report.traits`). Every pair that can be compared counts; a finding that
no pair is about is not listed.

Source: Gupta et al. 2023, https://arxiv.org/abs/2308.04014; on replay Ibrahim et al. 2024, https://arxiv.org/abs/2403.08763.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewarm.config.old_and_new import StreamData, share_data
from rewarm.report.arms import Arm, first_lead
from rewarm.report.outcome import Curve
from rewarm.report.traits import same_mix

__all__ = ['NEEDED', 'RULE', 'TIE', 'Finding', 'findings']

TIE = 0.02
"""Nats per token. The demo's end losses move by 0.01 to 0.06 with the seed, so less than this is no difference."""

MOST_PAIRS = 4
"""Of one claim; those that differ least come first."""

RULE = (
    'Two runs are compared where they began from the same weights (one of them untrained, where that is the question) and '
    'trained the same new data for as many tokens, with evaluation sets in common.'
)
NEEDED = (
    'No finding of the paper can be checked on these runs. That needs runs from the same starting weights over the same '
    'new data and as many tokens: one re-warmed, and one at a constant rate, from scratch or with replay; or one that is '
    're-warmed on the data it knows.'
)

SYMBOLS = {'seen': '✓', 'not seen': '✗', 'too close to tell': '≈'}


@dataclass(frozen=True)
class Finding:
    """One claim of the paper and what one pair of runs, or one run, says about it."""

    claim: str
    verdict: str
    """``seen``, ``not seen`` or ``too close to tell``."""
    detail: str
    """The numbers behind the verdict."""
    runs: tuple[str, ...]
    """Names of the runs that are compared, first the one that the claim is about."""
    differences: str
    """What else differs between them than the claim is about, in words; empty if nothing does."""
    more: int = 0
    """Pairs of the same claim that are not listed, told with the last one that is."""

    @property
    def symbol(self) -> str:
        """A mark beside the verdict."""
        return SYMBOLS[self.verdict]

    @property
    def about(self) -> str:
        """The runs, and what else differs."""
        runs = ' against '.join(self.runs)
        also = f'; also different: {self.differences}' if self.differences else ''
        more = f'; {self.more} more pairs like this one' if self.more else ''
        return runs + also + more

    @property
    def words(self) -> str:
        """The claim, the verdict and its numbers."""
        return f'{self.claim}: {self.verdict} ({self.detail})'

    def __str__(self) -> str:
        """The finding as one line."""
        return f'{self.symbol} {self.words}, {self.about}'


@dataclass(frozen=True)
class _Pair:
    """Two arms that can be compared."""

    first: Arm
    second: Arm

    def new(self) -> tuple[Curve, Curve]:
        """Both curves on the new side's common sets."""
        return self._curves(_common(self.first, self.second, self.first.new_sets, self.second.new_sets))

    def old(self) -> tuple[Curve, Curve]:
        """Both curves on the old side's common sets."""
        return self._curves(_common(self.first, self.second, self.first.old_sets, self.second.old_sets))

    def _curves(self, names: list[str]) -> tuple[Curve, Curve]:
        """Up to the last position that both have."""
        first, second = self.first.measure(names)[0], self.second.measure(names)[0]
        both = dict(first).keys() & dict(second).keys()
        last = max(both, default=-1)
        return [point for point in first if point[0] <= last], [point for point in second if point[0] <= last]

    def unfinished(self) -> str:
        """Says if one of them goes on, and how far they are compared."""
        going_on = [arm.name for arm in (self.first, self.second) if not arm.run.finished]
        return f'; {" and ".join(going_on)} not finished' if going_on else ''


Check = Callable[[_Pair], tuple[str, str] | None]
"""A verdict and its numbers; ``None`` if the evaluations do not tell."""


def findings(arms: Sequence[Arm]) -> list[Finding]:
    """The paper's findings, as far as the runs can be compared.

    Args:
        arms (Sequence[Arm]): Runs through their last stages, named as they like.

    Returns:
        list[Finding]: One for each claim and pair, at most ``MOST_PAIRS`` of a claim; empty if none can be compared.
    """
    names = _names(arms)
    rates = ('peak rate', 'curve', 'warm-up', 'lowest rate')
    claims: list[tuple[str, Callable[[Arm, Arm], bool], Check, tuple[str, ...]]] = [
        ('re-warmed ends below constant on new data', _same_but_rate, _below, rates),
        ('re-warmed ends below scratch on new data', _same_but_start, _below, ('optimizer state',)),
        ('constant is better on new data at first, then passed', _same_but_rate, _leads_first, rates),
        ('re-warmed forgets more than constant', _same_but_rate, _forgets_more, rates),
        ('replay reduces forgetting', _same_but_replay, _forgets_less, ()),
    ]
    found = []
    for claim, comparable, check, about in claims:
        pairs = [(a, b) for a, b in itertools.permutations(arms, 2) if _comparable(a, b) and comparable(a, b)]
        pairs.sort(key=lambda pair: len(_differences(*pair, about)))
        told = [
            Finding(claim, *said, (names[id(a)], names[id(b)]), ', '.join(_differences(a, b, about)))
            for a, b in pairs
            if (said := check(_Pair(a, b))) is not None
        ]
        found += _shortened(told)
    return found + _shortened([*_same_data(arms, names)])


def _shortened(told: list[Finding]) -> list[Finding]:
    if len(told) <= MOST_PAIRS:
        return told
    last = told[MOST_PAIRS - 1]
    fields = (last.claim, last.verdict, last.detail, last.runs, last.differences)
    return [*told[: MOST_PAIRS - 1], Finding(*fields, more=len(told) - MOST_PAIRS)]


def _names(arms: Sequence[Arm]) -> dict[int, str]:
    """A name for each run, with its folder where two have the same."""
    count = Counter(arm.name for arm in arms)
    return {id(arm): arm.name if count[arm.name] == 1 else f'{arm.name} in {arm.run.place}' for arm in arms}


def _comparable(one: Arm, other: Arm) -> bool:
    a, b = one.traits, other.traits
    alike = all(
        a.required[key] == b.required[key] for key in a.required if None not in (a.required[key], b.required[key])
    )
    return alike and bool(a.new) and same_mix(a.new, b.new) and a.budget_tokens == b.budget_tokens


def _same_but_rate(one: Arm, other: Arm) -> bool:
    a, b = one.traits, other.traits
    rates = (a.curve, b.curve) == ('rewarmed', 'constant')
    return rates and a.start.same(b.start) and same_mix(a.replayed, b.replayed)


def _same_but_start(one: Arm, other: Arm) -> bool:
    a, b = one.traits, other.traits
    return a.curve == 'rewarmed' and not a.start.untrained and b.start.untrained and not a.replayed and not b.replayed


def _same_but_replay(one: Arm, other: Arm) -> bool:
    a, b = one.traits, other.traits
    rates = a.curve == b.curve and a.peak == b.peak
    return rates and a.start.same(b.start) and a.replay > b.replay


def _differences(one: Arm, other: Arm, about: Sequence[str]) -> list[str]:
    """The settings that differ, but for those that the claim is about."""
    a, b = one.traits.settings, other.traits.settings
    return [
        f'{key} {a[key] or "unknown"} and {b[key] or "unknown"}' for key in a if key not in about and a[key] != b[key]
    ]


def _common(one: Arm, other: Arm, mine: Sequence[str], its: Sequence[str]) -> list[str]:
    """Sets of one side that both runs have, and that are the same text as far as their files tell."""
    first, second = (_texts(arm) for arm in (one, other))
    return [
        name
        for name in mine
        if name in its
        if share_data(first[name][0], second[name][0])
        if len({first[name][1], second[name][1]} - {None}) < 2
    ]


def _texts(arm: Arm) -> dict[str, tuple[StreamData, int | None]]:
    """Where each set's data is, and how many tokens of it were evaluated last."""
    places = {
        each.name: tuple(place for place in (each.local, each.remote) if place) for each in arm.run.config.eval.sets
    }
    return {
        line.set: (StreamData(line.set, places.get(line.set, ())), line.tokens_evaluated)
        for line in arm.run.evaluations
    }


def _verdict(difference: float) -> str:
    """What a difference says about a claim that it is positive."""
    if abs(difference) < TIE:
        return 'too close to tell'
    return 'seen' if difference > 0 else 'not seen'


def _below(pair: _Pair) -> tuple[str, str] | None:
    first, second = pair.new()
    if not first or not second or not math.isfinite(difference := first[-1][1] - second[-1][1]):
        return None
    return _verdict(-difference), f'{difference:+.2f}{pair.unfinished()}'


def _leads_first(pair: _Pair) -> tuple[str, str] | None:
    rewarm, constant = pair.new()
    common = dict(constant)
    lead = max((loss - common[at] for at, loss in rewarm if at in common), default=math.nan)
    if math.isnan(lead):
        return None
    passed = first_lead(rewarm, constant)
    if passed is None:
        return 'not seen', f're-warmed never passes it{pair.unfinished()}'
    if lead < TIE:
        return 'not seen', f're-warmed leads from the start{pair.unfinished()}'
    share = passed / max(1, pair.first.stage.planned_tokens)
    return 'seen', f'by up to {lead:.2f}, passed at {share:.0%} of the stage{pair.unfinished()}'


def _forgotten(pair: _Pair) -> tuple[float, float] | None:
    """What each of the two forgot; ``None`` if one was not evaluated before the stage."""
    curves = pair.old()
    if any(not curve or curve[0][0] for curve in curves):
        return None
    first, second = (curve[-1][1] - curve[0][1] for curve in curves)
    return (first, second) if math.isfinite(first - second) else None


def _forgets_more(pair: _Pair) -> tuple[str, str] | None:
    forgotten = _forgotten(pair)
    if forgotten is None:
        return None
    difference = forgotten[0] - forgotten[1]
    return _verdict(difference), f'{difference:+.2f}{pair.unfinished()}'


def _forgets_less(pair: _Pair) -> tuple[str, str] | None:
    forgotten = _forgotten(pair)
    if forgotten is None:
        return None
    detail = f'{forgotten[1]:+.2f} to {forgotten[0]:+.2f}'
    first, second = pair.new()
    if first and second:
        detail += f', at {first[-1][1] - second[-1][1]:+.2f} on new data'
    return _verdict(forgotten[1] - forgotten[0]), detail + pair.unfinished()


def _same_data(arms: Sequence[Arm], names: dict[int, str]) -> Iterator[Finding]:
    claim = 're-warming raises the loss on the same data'
    for arm in arms:
        trained = [each.set for each in arm.changes if each.told[arm.stage.name].trained == 'main']
        _, old = arm.measure([name for name in arm.old_sets if name in trained or not trained])
        if arm.part != 'same-data' or old is None or old.rise is None or not math.isfinite(old.rise):
            continue
        if old.recovery_tokens == 0:
            after = 'never above its start'
        elif old.recovery_tokens is None:
            after = f'not recovered, ends {old.end - (old.before or 0):+.2f}'
        else:
            after = f'recovered after {old.recovery_tokens / max(1, arm.stage.planned_tokens):.0%} of the stage'
        going_on = '' if arm.run.finished else f'; {arm.name} not finished'
        yield Finding(claim, _verdict(old.rise), f'{old.rise:+.2f}, {after}{going_on}', (names[id(arm)],), '')

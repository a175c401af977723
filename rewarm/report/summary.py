"""What a set of runs shows of the paper's findings, in words and computed from the runs alone.

An arm is recognised by its run name: ``demo-rewarm``, ``constant``, ``pythia-410m-same-data``. A finding whose arm is
missing is "not measured"; a difference too small to tell is said to be one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarm.report.arms import Arm, first_lead, last_stage_arm
from rewarm.report.run_folder import Run, read_runs

__all__ = ['ROLES', 'TIE', 'Finding', 'find_arms', 'findings', 'role_of', 'summary']

ROLES = ('rewarm', 'constant', 'scratch', 'replay', 'same-data')
"""Arms that the findings are about, in the order in which they are listed."""

TIE = 0.02
"""Nats per token. The demo's end losses move by 0.01 to 0.06 with the seed, so less than this is no difference."""

COLUMNS = ('old before', 'rise', '  end', 'forgetting', 'new before', '  end', 'adaptation')


@dataclass(frozen=True)
class Finding:
    """One claim of the paper and what these runs say about it."""

    claim: str
    verdict: str
    """``seen``, ``not seen``, ``too close to tell`` or ``not measured``."""
    detail: str
    """The numbers behind the verdict, or why there are none."""

    def __str__(self) -> str:
        """The finding as one line."""
        return f'{self.claim}: {self.verdict} ({self.detail})'


def role_of(run_name: str) -> str | None:
    """The part that a run plays, from its name: the whole name or what follows its last dash.

    Args:
        run_name (str): For example ``demo-rewarm`` or ``scratch``; underscores count as dashes.

    Returns:
        str | None: One of ``ROLES``; ``None`` for a run of another kind.
    """
    name = run_name.strip().lower().replace('_', '-')
    return next((role for role in ROLES if name == role or name.endswith(f'-{role}')), None)


def find_arms(runs: Sequence[Run]) -> dict[str, Arm]:
    """The arms among the runs, by role, in the order of ``ROLES``; the first run of a role counts."""
    arms: dict[str, Arm] = {}
    for run in runs:
        role, arm = role_of(run.name), last_stage_arm(run)
        if role and arm:
            arms.setdefault(role, arm)
    return {role: arms[role] for role in ROLES if role in arms}


def findings(arms: dict[str, Arm]) -> list[Finding]:
    """The paper's findings, checked against the arms.

    Args:
        arms (dict[str, Arm]): Arms by role; any of them may be missing.

    Returns:
        list[Finding]: Always the same claims in the same order.
    """
    return [
        _below(arms, 're-warmed ends below constant on new data', 'rewarm', 'constant'),
        _below(arms, 're-warmed ends below scratch on new data', 'rewarm', 'scratch'),
        _constant_leads_first(arms),
        _forgets_more(arms),
        _replay(arms),
        _same_data(arms),
    ]


def summary(run_folders: Sequence[str | Path]) -> list[str]:
    """A terminal summary of some runs: a line an arm, then a line a finding.

    Args:
        run_folders (Sequence[str | Path]): Run folders, finished or not.

    Returns:
        list[str]: Lines of text, computed from the runs.

    Raises:
        UserError: If one of them is no run folder.
    """
    runs = read_runs(run_folders)
    arms = sorted((arm for arm in map(last_stage_arm, runs) if arm), key=_place)
    if not arms:
        return ['nothing was evaluated yet']
    width = max(len('validation loss'), *(len(_label(arm)) for arm in arms))
    lines = [_row('validation loss', COLUMNS, width)]
    lines += [_arm_line(arm, width) for arm in arms]
    if len(arms) > 1:
        lines += [str(finding) for finding in findings(find_arms(runs))]
    return lines


def _place(arm: Arm) -> int:
    role = role_of(arm.name)
    return ROLES.index(role) if role else len(ROLES)


def _label(arm: Arm) -> str:
    label = role_of(arm.name) or arm.name
    return label if arm.run.finished else f'{label} (so far)'


def _arm_line(arm: Arm, width: int) -> str:
    old, new = arm.old, arm.new
    cells = (
        _loss(old.before if old else None),
        _signed(old.rise if old and not old.untrained else None),
        _loss(old.end if old else None),
        _signed(old.forgetting if old else None),
        _loss(new.before if new else None),
        _loss(new.end if new else None),
        _signed(new.adaptation if new else None),
    )
    return _row(_label(arm), cells, width)


def _row(first: str, cells: Sequence[str], width: int) -> str:
    return f'{first:<{width}}' + ''.join(
        f'{cell:>{len(title) + 2}}' for title, cell in zip(COLUMNS, cells, strict=True)
    )


def _loss(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'


def _signed(value: float | None) -> str:
    return '-' if value is None else f'{value:+.2f}'


def _verdict(difference: float) -> str:
    """What a difference says about a claim that it is positive."""
    if math.isnan(difference):
        return 'not measured'
    if abs(difference) < TIE:
        return 'too close to tell'
    return 'seen' if difference > 0 else 'not seen'


def _missing(arms: dict[str, Arm], *roles: str, old: bool = False, new: bool = False) -> str | None:
    """Why a comparison of these arms is not possible, or ``None`` if it is."""
    absent = [role for role in roles if role not in arms]
    if absent:
        return f'no {" and no ".join(absent)} run'
    found = [arms[role] for role in roles]
    if old and (any(arm.old is None for arm in found) or len({arm.old_sets for arm in found}) > 1):
        return 'no old set in common'
    if new and (any(arm.new is None for arm in found) or len({arm.new_sets for arm in found}) > 1):
        return 'no new set in common'
    if old and any(arm.old and arm.old.before is None for arm in found):
        return 'the old set was not evaluated before the stage'
    return None


def _below(arms: dict[str, Arm], claim: str, low: str, high: str) -> Finding:
    problem = _missing(arms, low, high, new=True)
    if problem:
        return Finding(claim, 'not measured', problem)
    difference = _new(arms[low]) - _new(arms[high])
    return Finding(claim, _verdict(-difference), _signed(difference) + _unfinished(arms, low, high))


def _constant_leads_first(arms: dict[str, Arm]) -> Finding:
    claim = 'constant is better on new data at first, then passed'
    problem = _missing(arms, 'rewarm', 'constant', new=True)
    if problem:
        return Finding(claim, 'not measured', problem)
    rewarm, constant = arms['rewarm'], arms['constant']
    common = dict(constant.new_curve)
    lead = max((loss - common[at] for at, loss in rewarm.new_curve if at in common), default=math.nan)
    passed = first_lead(rewarm.new_curve, constant.new_curve)
    if passed is None or math.isnan(lead):
        return Finding(claim, 'not seen', 're-warmed never passes it')
    if lead < TIE:
        return Finding(claim, 'not seen', 're-warmed leads from the start')
    share = passed / max(1, rewarm.stage.planned_tokens)
    return Finding(claim, 'seen', f'by up to {lead:.2f}, passed at {share:.0%} of the stage')


def _forgets_more(arms: dict[str, Arm]) -> Finding:
    claim = 're-warmed forgets more than constant'
    problem = _missing(arms, 'rewarm', 'constant', old=True)
    if problem:
        return Finding(claim, 'not measured', problem)
    difference = _forgetting(arms['rewarm']) - _forgetting(arms['constant'])
    return Finding(claim, _verdict(difference), _signed(difference) + _unfinished(arms, 'rewarm', 'constant'))


def _replay(arms: dict[str, Arm]) -> Finding:
    claim = 'replay reduces forgetting'
    problem = _missing(arms, 'replay', 'rewarm', old=True)
    if problem:
        return Finding(claim, 'not measured', problem)
    replay, rewarm = arms['replay'], arms['rewarm']
    detail = f'{_signed(_forgetting(rewarm))} to {_signed(_forgetting(replay))}'
    if _missing(arms, 'replay', 'rewarm', new=True) is None:
        detail += f', at {_signed(_new(replay) - _new(rewarm))} on new data'
    difference = _forgetting(rewarm) - _forgetting(replay)
    return Finding(claim, _verdict(difference), detail + _unfinished(arms, 'replay', 'rewarm'))


def _same_data(arms: dict[str, Arm]) -> Finding:
    claim = 're-warming raises the loss on the same data'
    problem = _missing(arms, 'same-data', old=True)
    if problem:
        return Finding(claim, 'not measured', problem)
    arm = arms['same-data']
    old = arm.old
    assert old is not None
    assert old.rise is not None
    if old.recovery_tokens == 0:
        after = 'never above its start'
    elif old.recovery_tokens is None:
        after = f'not recovered, ends {_signed(old.forgetting)}'
    else:
        after = f'recovered after {old.recovery_tokens / max(1, arm.stage.planned_tokens):.0%} of the stage'
    return Finding(claim, _verdict(old.rise), f'{_signed(old.rise)}, {after}{_unfinished(arms, "same-data")}')


def _new(arm: Arm) -> float:
    return arm.new.end if arm.new else math.nan


def _forgetting(arm: Arm) -> float:
    value = arm.old.forgetting if arm.old else None
    return math.nan if value is None else value


def _unfinished(arms: dict[str, Arm], *roles: str) -> str:
    going_on = [role for role in roles if not arms[role].run.finished]
    return f'; {" and ".join(going_on)} not finished' if going_on else ''

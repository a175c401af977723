"""What a set of runs shows, for a terminal: a line a run, then what they say about the paper's findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewarm.report.arms import Arm, last_stage_arm
from rewarm.report.findings import NEEDED, findings
from rewarm.report.run_folder import read_runs
from rewarm.report.traits import PARTS
from rewarm.terminal import printable

__all__ = ['in_order', 'summary']

COLUMNS = ('old before', 'rise', '  end', 'forgetting', 'since trained', 'new before', '  end', 'adaptation')


def summary(run_folders: Sequence[str | Path]) -> list[str]:
    """A terminal summary of some runs: a line a run, then two a finding.

    Args:
        run_folders (Sequence[str | Path]): Run folders, finished or not.

    Returns:
        list[str]: Lines of text, computed from the runs.

    Raises:
        UserError: If one of them is no run folder.
    """
    arms = in_order([arm for arm in map(last_stage_arm, read_runs(run_folders)) if arm])
    if not arms:
        return ['nothing was evaluated yet']
    width = max(len('validation loss'), *(len(_label(arm)) for arm in arms))
    lines = [_row('validation loss', COLUMNS, width)]
    lines += [_arm_line(arm, width) for arm in arms]
    if len(arms) > 1:
        found = findings(arms)
        for each in found:
            lines += [f'{each.symbol} {each.words}', f'    {printable(each.about)}']
        lines += [] if found else [NEEDED]
    return lines


def in_order(arms: Sequence[Arm]) -> list[Arm]:
    """Runs in the order of what they are to the paper's findings; the others last, as they came."""
    return sorted(arms, key=lambda arm: PARTS.index(arm.part) if arm.part else len(PARTS))


def _label(arm: Arm) -> str:
    return arm.name if arm.run.finished else f'{arm.name} (so far)'


def _arm_line(arm: Arm, width: int) -> str:
    old, new = arm.old, arm.new
    cells = (
        _loss(old.before if old else None),
        _signed(old.rise if old and not old.untrained else None),
        _loss(old.end if old else None),
        _signed(old.forgetting if old else None),
        _signed(arm.since_trained),
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

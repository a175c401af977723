"""Run folders -> one self-contained HTML page: charts, tables and what ran. It loads nothing from any network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from rewarm.report import charts, tables
from rewarm.report.arms import Arm, last_stage_arm
from rewarm.report.facts import facts
from rewarm.report.findings import NEEDED, RULE, TIE, findings
from rewarm.report.forgetting import set_outcomes
from rewarm.report.interruptions import interruptions
from rewarm.report.run_folder import Run, read_runs
from rewarm.report.tables import escape, tokens_text
from rewarm.report.timeline import find_timeline
from rewarm.report.timeline_chart import timeline_figure

__all__ = ['write_page']

_CUT = 'Axes are cut where a model without training begins; double-click a chart to see all.'
PAPER = 'https://arxiv.org/abs/2308.04014'
TERMS = {
    'Old and new data': 'what the model was trained on before (upstream) and what it goes on with (downstream).',
    'Re-warming': 'raising the learning rate again at the start of a stage, to let it decay once more over that stage.',
    'Rise': 'the highest validation loss of a stage minus the loss before its first batch.',
    'Forgetting': 'the loss on old data at the end of a stage minus its value before the first batch; below zero, '
    'the model became better at it.',
    'Recovery': 'the tokens after which the loss on old data is back at or below its start and stays there, as finely '
    'as evaluations were made; if it is not, the share of the rise that was undone.',
    'Adaptation': 'the loss on new data before the first batch of a stage minus its value at the end.',
}


def write_page(run_folders: Sequence[str | Path], out: str | Path, *, price: float | None = None) -> Path:
    """Writes the report on one or several runs, which are then also compared.

    Args:
        run_folders (Sequence[str | Path]): Run folders, finished or not, in the order in which they are shown.
        out (str | Path): The HTML file to write; it appears only when whole.
        price (float | None): Price of one device for an hour, in any unit of money, for what the runs cost.

    Returns:
        Path: The file.

    Raises:
        UserError: If one of them is no run folder.
    """
    from plotly.offline import get_plotlyjs

    page = _Page(read_runs(run_folders), price)
    template = Template((files('rewarm.report') / 'page.html').read_text(encoding='utf-8'))
    text = template.substitute(
        title=escape(page.title),
        body=page.body(),
        figures=_script_json(page.figures),
        plotly=get_plotlyjs(),
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)
    return path


def _script_json(value: object) -> str:
    """JSON that can stand inside a script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')


class _Page:
    """Collects sections, and numbers figures and tables as they come."""

    def __init__(self, runs: Sequence[Run], price: float | None = None) -> None:
        self.runs = runs
        self.price = price
        self.figures: dict[str, charts.Figure] = {}
        self.table_count = 0
        names = [run.name for run in runs]
        self.title = names[0] if len(names) == 1 else f'{len(names)} runs compared'

    def body(self) -> str:
        """The page's content from the heading to the footer."""
        several = len(self.runs) > 1
        parts = [f'<header><h1>{escape(self.title)}</h1>']
        if several:
            links = [f'<li><a href="#run-{i}">{escape(run.name)}</a></li>' for i, run in enumerate(self.runs)]
            parts.append('<p class="lede">First the runs side by side, then each by itself:</p>')
            parts.append(f'<nav aria-label="Runs"><ul>{"".join(links)}</ul></nav></header><main>')
            parts.append(self._comparison())
        else:
            parts.append(f'<p class="lede">{escape(_lede(self.runs[0]))}</p></header><main>')
        for index, run in enumerate(self.runs):
            parts.append(self._run(run, index, several))
        parts.append('</main>')
        parts.append(
            f'<footer><p>Made by <code>rewarm report</code>. Method and terms: Gupta et al. 2023, <a href="{PAPER}">'
            'Continual Pre-Training of Large Language Models: How to (re)warm your model?</a></p></footer>',
        )
        return '\n'.join(parts)

    def _comparison(self) -> str:
        arms = [arm for arm in map(last_stage_arm, self.runs) if arm]
        if not arms:
            return '<section><h2>Comparison</h2><p>Nothing was evaluated yet.</p></section>'
        parts = ['<section><h2>What these runs show of the paper’s findings</h2>']
        found = findings(arms)
        items = ''.join(
            f'<li>{each.symbol} {escape(_sentence(each.words))} {escape(each.about)}.</li>' for each in found
        )
        how = f'{RULE} Less than {TIE} nats per token apart is too close to tell.'
        parts.append(f'<p>{escape(how)}</p><ul class="findings">{items}</ul>' if found else f'<p>{escape(NEEDED)}</p>')
        parts.append(f'{_terms()}</section>')
        parts.append('<section><h2>Side by side</h2>')
        tokenizers = {run.config.tokenizer for run in self.runs}
        if len(tokenizers) > 1:
            parts.append('<p>The runs use different tokenizers: compare their bits per byte, not their losses.</p>')
        parts.append(
            self._figure(
                charts.comparison_figure(arms),
                'Validation loss on old data, on new data, and the learning rate, over tokens since each run’s last stage '
                f'began. Runs that share their first stage start from the same point. {_CUT}',
                '; '.join(f'{arm.name}: {_spoken(arm)}' for arm in arms),
            ),
        )
        parts.append(self._table(tables.arms_table, arms))
        # The control on the same data was shown no new data: it has no place in a trade-off between the two.
        ends = [arm for arm in arms if arm.old and arm.new and arm.part != 'same-data']
        if len(ends) > 1:
            parts.append(
                self._figure(
                    charts.pareto_figure(ends),
                    'Where each run ends. Lower left is better; no run is better on both losses than one on the dotted '
                    'line. A control on the same data is left out.',
                    'Loss on new data at the end against loss on old data at the end, one mark a run',
                ),
            )
        parts.append('</section>')
        return '\n'.join(parts)

    def _run(self, run: Run, index: int, several: bool) -> str:
        level = 'h3' if several else 'h2'
        parts = [f'<section id="run-{index}">']
        if several:
            parts.append(f'<h2>{escape(run.name)}</h2><p class="lede">{escape(_lede(run))}</p>')
        if run.evaluations:
            parts.append(f'<{level}>Old and new data</{level}>')
            stopped = interruptions(run.events)
            parts.append(
                self._figure(
                    charts.validation_figure(run),
                    'Validation loss, with the learning rate under it on the same axis. Upright lines are the starts of '
                    'stages'
                    + ('; dotted lines and triangles are interruptions.' if stopped else '.')
                    + (f' {_CUT}' if run.from_scratch else ''),
                    '; '.join(
                        f'{entry.set} in stage {entry.stage.name}: {_loss_path(entry.outcome.before, entry.outcome.end)}'
                        for entry in set_outcomes(run)
                    ),
                ),
            )
            parts.append(f'<{level}>Forgetting, recovery and adaptation</{level}>')
            parts.append('' if several else _terms())
            parts.append(self._table(tables.stage_outcomes_table, run))
            parts.append(self._table(tables.changes_table, run) if len(run.stages) > 1 else '')
        else:
            parts.append('<p>Nothing was evaluated yet.</p>')
        if run.batches:
            parts.append(f'<{level}>Training loss</{level}>')
            parts.append(
                self._figure(
                    charts.training_figure(run),
                    'Training loss: the mean of neighbouring batches, and shaded the range they span.',
                    f'Training loss, ending at {run.batches[-1].loss:.3f}',
                ),
            )
        parts += self._timeline(run, level)
        parts.append(f'<{level}>What ran</{level}>')
        parts.append(self._table(tables.stages_table, run) if run.stages else '')
        parts.append(self._table(tables.interruptions_table, run) if interruptions(run.events) else '')
        parts.append(facts(run, self.price))
        if run.config_text:
            parts.append(
                f'<details><summary>Settings as resolved (config.yaml)</summary><pre>{escape(run.config_text)}</pre></details>',
            )
        parts.append('</section>')
        return '\n'.join(parts)

    def _timeline(self, run: Run, level: str) -> list[str]:
        timeline = find_timeline(run)
        if not timeline.wall_seconds:
            return []
        stops = len(interruptions(run.events))
        return [
            f'<{level}>Where the time went</{level}>',
            self._figure(
                timeline_figure(run, timeline),
                'The run against the clock. Dotted lines are batches that were lost with a process and done again; under '
                'them the share of all time so far that went into batches that count; at the bottom what happened when.',
                f'Goodput {100 * (timeline.goodput or 0):.1f} % in {stops} interruptions',
            ),
            self._table(tables.time_table, run),
        ]

    def _figure(self, figure: charts.Figure, caption: str, spoken: str) -> str:
        number = len(self.figures) + 1
        name = f'figure-{number}'
        self.figures[name] = figure
        height = figure['layout']['height']
        return (
            f'<figure><div class="chart" id="{name}" role="img" aria-label="{escape(spoken)}" '
            f'style="min-height:{height}px"></div>'
            f'<figcaption><b>Figure {number}.</b> {escape(caption)}</figcaption></figure>'
        )

    def _table(self, make: Callable[..., str], subject: Run | Sequence[Arm]) -> str:
        self.table_count += 1
        return make(subject, self.table_count)


def _terms() -> str:
    items = ''.join(f'<dt>{escape(term)}:</dt><dd>{escape(meaning)}</dd>' for term, meaning in TERMS.items())
    return f'<dl class="terms">{items}</dl>'


def _lede(run: Run) -> str:
    """The run in two sentences."""
    if not run.stages:
        return 'The run has not done a batch yet.'
    names = ', then '.join(f'{stage.name} ({tokens_text(stage.done_tokens)} tokens)' for stage in run.stages)
    state = 'Finished.' if run.finished else f'Not finished: {tokens_text(run.tokens)} tokens so far.'
    stops = interruptions(run.events)
    if not stops:
        return f'{names}. {state}'
    again = sum(stop.lost_batches or 0 for stop in stops)
    times = 'once' if len(stops) == 1 else f'{len(stops)} times'
    return f'{names}. {state} Interrupted {times}, {again:,} batches repeated.'


def _spoken(arm: Arm) -> str:
    old = f'old data {_loss_path(arm.old.before, arm.old.end)}' if arm.old else 'old data not evaluated'
    new = f'new data {_loss_path(arm.new.before, arm.new.end)}' if arm.new else 'new data not evaluated'
    return f'{old}, {new}'


def _loss_path(before: float | None, end: float) -> str:
    return f'ends at {end:.3f}' if before is None else f'from {before:.3f} to {end:.3f}'


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].replace('-0.', '−0.') + '.'

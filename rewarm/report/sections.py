"""The page's sections from its heading to its foot, as HTML: a comparison of several runs, then each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

from rewarm.report import charts, comparison_charts, loss_tables, tables
from rewarm.report.arms import Arm, last_stage_arm
from rewarm.report.facts import date_text, facts
from rewarm.report.findings import NEEDED, RULE, TIE, Finding, findings
from rewarm.report.forgetting import set_outcomes
from rewarm.report.interruptions import interruptions
from rewarm.report.legend import legend
from rewarm.report.plots import Figure
from rewarm.report.run_folder import Run
from rewarm.report.tables import escape, tokens_text
from rewarm.report.timeline import Timeline, find_timeline
from rewarm.report.timeline_chart import timeline_figure

__all__ = ['Sections']

PAPER = 'https://arxiv.org/abs/2308.04014'
TERMS = {
    'Old and new data': 'a set’s data is old in a stage once an earlier stage, or the starting weights, learned it; what a '
    'stage is the first to train is new.',
    'Re-warming': 'raising the learning rate again at the start of a stage, to let it decay once more over that stage.',
    'Rise': 'the highest validation loss of a stage minus the loss before its first batch.',
    'Forgetting': 'the loss on old data at the end of a stage minus its value before the first batch, or over a longer span: '
    'since its data was last trained, since the run began. Below zero, the model became better at it.',
    'Recovery': 'the tokens after which the loss on old data is back at or below its start and stays there, as finely '
    'as evaluations were made; if it is not, the share of the rise that was undone.',
    'Adaptation': 'the loss on new data before the first batch of a stage minus its value at the end.',
}


class Sections:
    """Makes the sections, and numbers figures and tables as they come.

    Args:
        runs (Sequence[Run]): The runs, in the order in which they are shown.
        price (float | None): Price of one device for an hour.
    """

    def __init__(self, runs: Sequence[Run], price: float | None = None) -> None:
        self.runs = runs
        self.price = price
        self.figures: dict[str, Figure] = {}
        self.table_count = 0
        self.explained = False
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
            parts += self._comparison()
        else:
            parts.append(f'<p class="lede">{escape(_lede(self.runs[0]))}</p></header><main>')
        for index, run in enumerate(self.runs):
            parts += self._run(run, index, several)
        parts.append('</main>')
        parts.append(
            f'<footer><p>Written by <code>rewarm report</code> on {date_text(datetime.now(UTC))}. Method and terms: Gupta et '
            f'al. 2023, <a href="{PAPER}">Continual Pre-Training of Large Language Models: How to (re)warm your model?</a>'
            '</p></footer>',
        )
        return '\n'.join(parts)

    def _comparison(self) -> Iterator[str]:
        arms = [arm for arm in map(last_stage_arm, self.runs) if arm]
        if not arms:
            yield f'<section><h2>Comparison</h2><p>{_not_evaluated(self.runs)}</p></section>'
            return
        found = findings(arms)
        yield from _findings(found)
        yield '<section><h2>Side by side</h2>'
        tokenizers = {run.config.tokenizer for run in self.runs}
        if len(tokenizers) > 1:
            yield '<p>The runs use different tokenizers: compare their bits per byte, not their losses.</p>'
        caption = 'Validation loss on old data, on new data, and the learning rate, over tokens since each run’s last stage began.'
        spoken = '; '.join(f'{arm.name}: {_spoken(arm)}' for arm in arms)
        cut = any(outcome and outcome.untrained for arm in arms for outcome in (arm.old, arm.new))
        yield self._figure(comparison_charts.comparison_figure(arms), caption, spoken, cut=cut)
        yield self._table(loss_tables.arms_table, arms)
        ends = [arm for arm in arms if comparison_charts.has_two_ends(arm)]
        if len(ends) > 1:
            yield self._trade_off(arms, ends)
        if not found:
            yield f'<p class="how">{escape(NEEDED)}</p>'
        seen = {'Seen, not seen': f'{RULE} Less than {TIE} nats per token apart is too close to tell.'} if found else {}
        yield f'{self._terms("h3", seen)}</section>'

    def _trade_off(self, arms: Sequence[Arm], ends: Sequence[Arm]) -> str:
        figure = comparison_charts.pareto_figure(arms)
        caption = 'Where each run ends. Lower left is better.'
        if any('lines' in trace['mode'] for trace in figure['data']):
            caption += ' No run is better on both losses than one on the dotted line.'
        if left_out := [arm.name for arm in arms if arm not in ends]:
            caption += f' Left out, with nothing to trade off: {", ".join(left_out)}.'
        return self._figure(figure, caption, 'Loss on new data at the end against loss on old data, one mark a run')

    def _run(self, run: Run, index: int, several: bool) -> Iterator[str]:
        level = 'h3' if several else 'h2'
        yield f'<section id="run-{index}" class="run">'
        head = f'<h2>{escape(run.name)}</h2><p class="lede">{escape(_lede(run))}</p>' if several else ''
        if run.evaluations:
            yield _together(head, f'<{level}>Old and new data</{level}>', self._validation(run))
            title = f'<{level}>Forgetting, recovery and adaptation</{level}>'
            yield _together(title, self._table(loss_tables.stage_outcomes_table, run))
            yield self._table(loss_tables.changes_table, run) if len(run.stages) > 1 else ''
            yield self._terms(level)
        else:
            yield _together(head, f'<p>{_not_evaluated([run])}</p>')
        if run.batches:
            yield _together(f'<{level}>Training loss</{level}>', self._training(run))
        timeline = find_timeline(run)
        if timeline.wall_seconds:
            yield _together(f'<{level}>Where the time went</{level}>', self._clock(run, timeline))
            yield self._table(tables.time_table, run)
        title = f'<{level}>What ran</{level}>'
        yield _together(title, self._table(tables.stages_table, run)) if run.stages else title
        yield self._table(tables.interruptions_table, run) if interruptions(run.events) else ''
        yield facts(run, self.price)
        if run.config_text:
            yield '<details><summary>Settings as resolved (config.yaml)</summary>'
            yield f'<pre tabindex="0">{escape(run.config_text)}</pre></details>'
        yield '</section>'

    def _validation(self, run: Run) -> str:
        caption = 'Validation loss, with the learning rate under it on the same axis.'
        if len(run.stages) > 1:
            caption += ' Upright lines are the starts of stages.'
        if stops := interruptions(run.events):
            caption += ' Triangles are interruptions' + (
                ', with dotted lines.' if len(stops) <= charts.MAX_LINES else '.'
            )
        spoken = '; '.join(
            f'{entry.set} in stage {entry.stage.name}: {_loss_path(entry.outcome.before, entry.outcome.end)}'
            for entry in set_outcomes(run)
        )
        return self._figure(charts.validation_figure(run), caption, spoken, cut=run.from_scratch)

    def _training(self, run: Run) -> str:
        spanned = any(len(run.stage_batches(stage.name)) > charts.MAX_POINTS for stage in run.stages)
        caption = 'Training loss: the mean of neighbouring batches, and shaded the range they span.'
        return self._figure(
            charts.training_figure(run),
            caption if spanned else 'Training loss of each batch.',
            f'Training loss, ending at {run.batches[-1].loss:.3f}',
        )

    def _clock(self, run: Run, timeline: Timeline) -> str:
        lost = any(life.lost_batches for life in timeline.lives)
        caption = 'The run against the clock: its tokens'
        caption += (
            ', dotted where batches were lost with a process and done again; under them' if lost else '; under them'
        )
        caption += ' the share of all time so far that went into batches that count; at the bottom what happened when.'
        count = len(interruptions(run.events))
        spoken = f'Goodput {100 * (timeline.goodput or 0):.1f} % in {count} interruptions'
        return self._figure(timeline_figure(run, timeline), caption, spoken)

    def _figure(self, figure: Figure, caption: str, spoken: str, *, cut: bool = False) -> str:
        """A chart with its legend and caption; one whose loss axes are cut has a button that shows all."""
        number = len(self.figures) + 1
        name = f'figure-{number}'
        self.figures[name] = figure
        more = ''
        if cut:
            caption += ' The loss axis is cut where a model without training begins.'
            more = f' <button type="button" class="all" data-chart="{name}" aria-pressed="false">Show all</button>'
        if number == 1:
            more += ' <span class="with-mouse">Drag to zoom in, double-click to zoom out.</span>'
            more += '<span class="with-touch">Tap a curve for its numbers.</span>'
        return (
            f'<figure>{legend(figure, name)}<div class="chart" id="{name}" role="group" aria-label="{escape(spoken)}" '
            f'style="min-height:{figure["layout"]["height"]}px"></div>'
            f'<figcaption><b>Figure {number}.</b> {escape(caption)}{more}</figcaption></figure>'
        )

    def _table(self, make: Callable[..., str], subject: Run | Sequence[Arm]) -> str:
        self.table_count += 1
        return make(subject, self.table_count)

    def _terms(self, level: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
        """The glossary, once: under the first figure and table."""
        if self.explained:
            return ''
        self.explained = True
        items = ''.join(
            f'<dt>{escape(term)}:</dt><dd>{escape(meaning)}</dd>' for term, meaning in {**TERMS, **more}.items()
        )
        return f'<{level}>Words used here</{level}><dl class="terms">{items}</dl>'


def _together(*parts: str) -> str:
    """What stays on one sheet of paper, such as a heading and its figure."""
    return f'<div class="together">{"".join(parts)}</div>'


def _findings(found: Sequence[Finding]) -> Iterator[str]:
    if not found:
        return
    yield '<section><h2>What these runs show of the paper’s findings</h2><ul class="findings">'
    for each in found:
        yield (
            f'<li class="{each.verdict.replace(" ", "-")}"><b><span aria-hidden="true">{each.symbol}</span> '
            f'{escape(_capital(each.verdict))}</b> <span>{escape(_capital(each.claim))}: '
            f'{escape(each.detail.replace("-0.", "−0."))}. <small>{escape(each.about)}.</small></span></li>'
        )
    yield '</ul></section>'


def _not_evaluated(runs: Sequence[Run]) -> str:
    """Why there are no validation losses."""
    if any(not run.config_text or run.config.eval.sets for run in runs):
        return 'Nothing was evaluated yet.'
    whose = 'The run file has' if len(runs) == 1 else 'The run files have'
    return (
        f'{whose} no evaluation sets, so there are no validation losses to show. Add some under <code>eval.sets</code>.'
    )


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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

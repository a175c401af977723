"""The page as a reader has it: measured in a real browser, on a desk, on a phone, on paper and without scripts."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rewarm.report.page import write_page
from tests.report.browser import Browser, needs_chromium
from tests.report.shown_runs import RUNS
from tests.report.test_page import figures

pytestmark = needs_chromium

OVERLAPS = """(() => {
  const labels = [...document.querySelectorAll('.chart text')].filter(each => each.textContent.trim() && !each.closest('.hoverlayer'));
  const boxes = labels.map(each => ({box: each.getBoundingClientRect(), chart: each.closest('.chart').id, text: each.textContent}))
    .filter(({box}) => box.width && box.height);
  const found = [];
  for (const [i, a] of boxes.entries()) for (const b of boxes.slice(0, i))
    if (a.chart === b.chart && Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left) > 1
        && Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top) > 3) found.push([a.chart, a.text, b.text]);
  return found;
})()"""
"""Pairs of labels of a chart that lie on each other."""

OUT_OF_SIGHT = """(() => {
  const within = box => box.width && box.left >= -0.5 && box.right <= innerWidth + 0.5;
  const cells = [...document.querySelectorAll('tbody th, tbody td')].filter(each => each.textContent.trim());
  return cells.filter(each => {
    const range = document.createRange();
    range.selectNodeContents(each);
    return ![...range.getClientRects()].every(within);
  }).map(each => each.textContent);
})()"""
"""Cells of tables with text that is not on the screen, however far down."""

TICKS = """Object.fromEntries([...document.querySelectorAll('.chart')].flatMap(chart =>
  ['xtick', 'ytick', 'y2tick', 'y3tick'].map(axis => [`${chart.id} ${axis}`,
    [...chart.querySelectorAll(`g.${axis} text`)].map(each => each.textContent)])))"""


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """One browser for all tests."""
    browser = Browser(tmp_path_factory.mktemp('browser'))
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def show(browser, tmp_path_factory):
    """Shows a page, ``show('five', width=390)``, and gives its file; one that is there already is not drawn again."""
    folder = tmp_path_factory.mktemp('pages')
    known, there = {}, []

    def open_page(name, **view):
        if name not in known:
            known[name] = write_page(RUNS[name](folder / f'{name}-runs'), folder / f'{name}.html')
        if there != [(name, view)]:
            browser.open(known[name], **view)
            there[:] = [(name, view)]
        return known[name]

    return open_page


def check_every_chart_is_drawn(browser, path, scheme):
    assert browser.console == []
    assert browser.requests[1:] == []  # the first is the page
    assert browser.run('document.documentElement.dataset.drawn') == scheme
    count = len(figures(path.read_text()))
    drawn = browser.run(
        "[...document.querySelectorAll('.chart')].map(each => each.querySelectorAll('.scatterlayer path[d^=M]').length)"
    )
    assert len(drawn) == count == 17
    assert all(drawn)
    old = {'light': 'rgb(184, 72, 11)', 'dark': 'rgb(242, 138, 75)'}[scheme]
    assert f'stroke: {old}' in browser.run("document.getElementById('figure-1').innerHTML")


def test_charts_are_drawn_in_the_colours_of_a_dark_screen(browser, show):
    check_every_chart_is_drawn(browser, show('five', scheme='dark'), 'dark')


@pytest.mark.skipif(shutil.which('pdftotext') is None, reason='no pdftotext (Debian: apt-get install poppler-utils)')
def test_on_paper_no_heading_ends_a_page_and_the_first_is_well_used(browser, show, tmp_path):
    show('five', scheme='dark')
    headings = {*browser.run("[...document.querySelectorAll('h1, h2, h3')].map(each => each.textContent)")}
    path = browser.print(tmp_path / 'page.pdf')
    text = subprocess.run(['pdftotext', '-layout', path, '-'], capture_output=True, text=True, check=True).stdout
    sheets = [[line.strip() for line in sheet.splitlines() if line.strip()] for sheet in text.split('\f')]
    sheets = [sheet for sheet in sheets if sheet]
    assert len(sheets) < 20
    assert any(line.startswith('Figure 1.') for line in sheets[0])
    assert len([line for sheet in sheets for line in sheet if line in headings]) > 20
    for sheet in sheets:
        assert sheet[-1] not in headings


def test_paper_has_its_own_colours_and_width(browser, show):
    show('five', scheme='dark')
    look = """(() => { const chart = document.getElementById('figure-1');
      return [chart.querySelector('.main-svg').clientWidth, chart.innerHTML.includes('rgb(184, 72, 11)')]; })()"""
    on_screen = browser.run(look)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(look) == [680, True]
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(look) == on_screen
    assert on_screen[0] > 900
    assert not on_screen[1]


def test_charts_are_drawn_in_the_colours_of_a_light_screen(browser, show):
    check_every_chart_is_drawn(browser, show('five'), 'light')


def test_a_legend_has_a_sample_of_each_dash_that_is_long_enough(browser, show):
    show('five')
    samples = browser.run("""[...document.querySelectorAll('[data-chart=figure-1] path')].map(each =>
      [each.getAttribute('stroke-dasharray'), each.getTotalLength()])""")
    dashes = [dash for dash, _ in samples]
    assert len({*dashes}) == 5
    for dash, length in samples:
        assert dash is None or length >= 2 * sum(map(float, dash.split(',')))
    drawn = browser.run("document.getElementById('figure-1').innerHTML")
    assert all(dash is None or dash.replace(',', 'px, ') in drawn for dash in dashes)


def test_the_keyboard_hides_a_curve_and_shows_all_of_a_cut_axis(browser, show):
    show('five')
    count = "document.querySelectorAll('#figure-1 .js-line').length"
    before = browser.run(count)
    browser.run("document.querySelector('[data-chart=figure-1] button').focus()")
    browser.press('Enter')
    assert browser.run('document.activeElement.getAttribute("aria-pressed")') == 'false'
    assert browser.run(count) == before - 3  # old, new and rate
    browser.press('Enter')
    assert browser.run(count) == before
    top = "Math.max(...document.getElementById('figure-1').layout.yaxis.range)"
    assert browser.run(top) < 6.5
    browser.run("document.querySelector('button.all').focus()")
    browser.press('Enter')
    assert browser.run(top) > 7.8  # the untrained start
    browser.press('Enter')
    assert browser.run(top) < 6.5


def test_nothing_to_press_lies_in_an_image_and_all_of_it_has_a_name(browser, show):
    show('five')
    pressable = 'button, a[href], [tabindex]'
    assert browser.run(f"document.querySelectorAll('[role=img] :is({pressable})').length") == 0
    names = browser.run(
        "[...document.querySelectorAll('main button')].map(each => (each.ariaLabel || each.textContent).trim())"
    )
    assert names
    assert all(names)
    assert 'Reset axes' in names
    assert not [name for name in names if 'share' in name.lower() or 'cloud' in name.lower()]


def test_each_pointer_gets_its_own_advice(browser, show):
    for width, shown, hidden in ((1280, 'Drag to zoom in', 'Tap a curve'), (390, 'Tap a curve', 'Drag to zoom in')):
        show('five', **({} if width > 390 else {'width': width}))
        text = browser.run('document.body.innerText')
        assert shown in text
        assert hidden not in text
        assert browser.run("document.getElementById('figure-1').layout.dragmode") == ('zoom' if width > 390 else False)


@pytest.mark.parametrize(
    ('name', 'width'), [('five', 390), *((name, width) for name in RUNS for width in (390, 1280) if name != 'five')]
)
def test_every_number_is_within_reach_and_no_label_lies_on_another(browser, show, name, width):
    show(name, width=width)
    assert browser.console == []
    assert browser.run('document.documentElement.scrollWidth') <= width
    assert browser.run(OUT_OF_SIGHT) == []
    assert browser.run("document.querySelectorAll('tbody td').length") > 10
    assert browser.run(OVERLAPS) == []
    ticks = {axis: labels for axis, labels in browser.run(TICKS).items() if labels}
    assert ticks
    for axis, labels in ticks.items():
        assert len(set(labels)) == len(labels), axis
    if count := {'near': 3, 'equal': 4, 'five': 4}.get(name):  # of `five`, the control saw no new data
        check_ends(browser, count, at_least=count if width > 390 else count - 1)


def check_ends(browser, count, at_least):
    """Each run's end has its name beside it, on no other and off the line; where there is no room the legend has it."""
    labels = browser.run(
        """[...document.querySelectorAll('#figure-2 .annotation-text')].map(each => each.textContent)"""
    )
    assert len(labels) >= at_least
    assert len({*labels}) == len(labels)
    assert browser.run("document.querySelectorAll('[data-chart=figure-2] button').length") == count
    crossed = browser.run("""(() => {
      const line = document.querySelector('#figure-2 path.js-line'), found = [];
      if (!line) return found;
      const place = line.getScreenCTM();
      for (let at = 0; at < line.getTotalLength(); at++) {
        const point = line.getPointAtLength(at).matrixTransform(place);
        for (const text of document.querySelectorAll('#figure-2 .annotation-text')) {
          const box = text.getBoundingClientRect();
          if (point.x > box.left && point.x < box.right && point.y > box.top && point.y < box.bottom) found.push(text.textContent);
        }
      }
      return found;
    })()""")
    assert crossed == []


def test_labels_find_their_place_again_in_another_window(browser, show):
    show('near', width=1210)
    browser.resize(600)
    browser.wait(f"document.querySelector('#figure-2 .main-svg').clientWidth < 600 && {OVERLAPS}.length === 0")


def test_runs_that_differ_in_the_fourth_digit_are_told_apart_however_far_one_zooms(browser, show):
    show('near', width=1200)
    for low, high in ((4.2571, 4.2573), (4.25701, 4.25703)):
        zoom = f"Plotly.relayout('figure-2', {{'xaxis.range': [{low}, {high}], 'yaxis.range': [{low}, {high}]}})"
        browser.run(f'{zoom}.then(() => 1)')
        ticks = browser.run(TICKS)
        for axis in ('figure-2 xtick', 'figure-2 ytick'):
            assert len(ticks[axis]) > 2
            assert len({*ticks[axis]}) == len(ticks[axis])


def test_without_scripts_all_but_the_charts_is_there(browser, show):
    show('five', scripts=False)
    text = browser.run('document.body.innerText')
    for words in ('demo-same-data', 'Forgetting', '+0.950', 'demo-rewarm', 'Figure 17.'):
        assert words in text
    empty = browser.run("getComputedStyle(document.getElementById('figure-1'), '::after').content")
    assert 'The tables hold the numbers' in empty
    assert browser.run("document.querySelectorAll('.legend svg').length") > 10

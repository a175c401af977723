"""Run folders of any kind: a status, a page and a start, or an error in words; nothing that steers terminal or browser."""

import io
import json
import shutil
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser

import pytest

from rewarm.config.errors import UserError
from rewarm.report.measured import measure
from rewarm.report.metrics import cut_back, recent_losses
from rewarm.report.page import write_page
from rewarm.report.show_status import status_command
from tests.fuzz.inputs import run_inputs
from tests.fuzz.mutations import TEXTS, change_bytes, change_json, change_lines, change_value, replace_file
from tests.report.conftest import write_run
from tests.report.story import Story

FILES = ('metrics.jsonl', 'evals.jsonl', 'events.jsonl', 'events.jsonl', 'plan.json', 'environment.json', 'config.yaml')
CONFIG = {
    'run_name': 'demo',
    'seed': 17,
    'tokenizer': 'demo/tokenizer.json',
    'model': {'name': 'custom', 'init_from': 'scratch'},
    'stages': [{'name': 'code', 'schedule': {'name': 'cosine', 'lr': 1e-3}}],
}


class Elements(HTMLParser):
    """What a browser would obey in a page."""

    def __init__(self):
        super().__init__()
        self.scripts, self.hostile = 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == 'script'
        legends = tag == 'svg' and dict(attributes).get('aria-hidden') == 'true'  # ours, of shapes alone
        if tag in ('img', 'svg', 'iframe', 'object', 'embed', 'base', 'form') and not legends:
            self.hostile.append(tag)
        self.hostile += [f'{tag} {name}' for name, _ in attributes if name.startswith('on')]


def elements_of(page):
    parser = Elements()
    parser.feed(page.read_text(encoding='utf-8'))
    return parser


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A run of two stages with evaluations and a preemption, with few lines."""
    folder = write_run(tmp_path_factory.mktemp('good') / 'run')
    lines = (folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (folder / 'metrics.jsonl').write_text(''.join(lines[::40]))
    (folder / 'config.yaml').write_text(json.dumps(CONFIG))
    story = Story(folder.parent / 'story').start().train(20).save().train(9).preempt().start().train(5).kill().start()
    events = (story.write() / 'events.jsonl').read_text()
    with (folder / 'events.jsonl').open('a') as file:
        file.write(events)
    return folder


def change(rng, folder):
    path = folder / rng.choice(FILES)
    what = rng.random()
    if what < 0.06:
        replace_file(rng, path)
    elif what < 0.14:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    elif path.suffix == '.jsonl':
        path.write_bytes(change_lines(rng, path.read_bytes()))
    elif what < 0.3:
        path.write_bytes(rng.choice(TEXTS))
    else:
        path.write_bytes(change_json(rng, json.dumps(change_value(rng, json.loads(path.read_bytes()))).encode()))


def in_words(call):
    """Calls a command; an error for the user is an answer too. Returns what it printed."""
    with redirect_stdout(io.StringIO()) as said:
        with suppress(UserError):
            call()
    assert '\x1b]' not in said.getvalue()
    assert '\x1b[2J' not in said.getvalue()
    assert '\x9b' not in said.getvalue()
    return said.getvalue()


def test_a_changed_run_folder_is_shown_or_refused(tmp_path, good):
    folder, page = tmp_path / 'now', tmp_path / 'page.html'
    write_page([good], page)
    scripts = elements_of(page).scripts

    def attempt(rng):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(rng, folder)
        in_words(lambda: status_command(folder))
        told = in_words(lambda: status_command(folder, as_json=True))
        if told:
            json.loads(told, parse_constant=pytest.fail)
        in_words(lambda: measure(folder))
        if rng.random() < 0.2:
            page.unlink(missing_ok=True)
            in_words(lambda: write_page([folder, good], page))
            if page.exists():
                shown = elements_of(page)
                assert (shown.scripts, shown.hostile) == (scripts, [])

    run_inputs(attempt, 200)


def test_a_changed_line_of_the_records_stops_no_start(tmp_path, good):
    lines = (good / 'metrics.jsonl').read_bytes().split(b'\n')[:5]

    def attempt(rng):
        changed = change_lines(rng, b'\n'.join(lines) + b'\n')
        (tmp_path / 'metrics.jsonl').write_bytes(changed)
        (tmp_path / 'evals.jsonl').write_bytes(changed)
        cut_back(tmp_path, 10**9)
        recent_losses(tmp_path, 'code', 10)
        for line in (tmp_path / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]:
            assert line in lines or isinstance(json.loads(line)['batch'], int)

    run_inputs(attempt, 1000)


def test_no_flipped_bit_of_a_line_stops_a_start(tmp_path, good):
    before, line, after = (good / 'metrics.jsonl').read_bytes().split(b'\n')[:3]
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join((before, flipped, after)) + b'\n')
        cut_back(tmp_path, 10**9)
        recent_losses(tmp_path, 'code', 10)
        kept = (tmp_path / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]
        assert kept[0] == before
        assert kept[-1] == after

"""A run folder of a stranger's: status, page and measurements are sensible or one line of an error, whatever it holds."""

import json
import os
import re
from html.parser import HTMLParser

import pytest

from rewarm.config.errors import UserError
from rewarm.report.measured import measure
from rewarm.report.page import write_page
from rewarm.report.show_status import status_command
from tests.report.story import Story

LARGEST = (1 << 63) - 1
TEXTS = (
    '\x1b]52;c;cHduZWQ=\x07\x1b[2J',
    '[bold red]x[/] [/] [link=http://evil]',
    '\u202etxt.exe\x9b31m\x7f',
    '</script><script>alert(1)</script><img src=x onerror=alert(1)>',
    '"><svg/onload=alert(1)>',
    'idle\nrun is finished\r\n',
    '\\',
    '${title} $body {{x}} %s',
)
NAMES = ('run_start', 'resume', 'first_batch', 'save', 'upload', 'fallback', 'preempted', 'rank_lost', 'upload_failed')


def batch(**more):
    at = {'stage': 's', 'batch': 1, 'tokens': 10, 'stage_tokens': 10, 'lr': 0.1, 'loss': 4.0, 'seconds': 1.0}
    return {**at, 'tokens_per_second': 5.0, 'time': '2026-01-01T00:00:00+00:00', **more}


def evaluation(**more):
    return {**batch(), 'set': 'old', 'role': 'upstream', **more}


@pytest.fixture
def make(tmp_path):
    """Writes a run folder."""

    def write(metrics=(), evals=(), events=(), **files):
        folder = tmp_path / 'run'
        folder.mkdir()
        for name, lines in (('metrics', metrics), ('evals', evals), ('events', events)):
            (folder / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        for name, content in files.items():
            (folder / name.replace('_', '.')).write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def look(tmp_path, capsys):
    """All that people see of a folder: the words of the status, its JSON, the page."""

    def look(folder):
        status_command(folder)
        words = capsys.readouterr().out
        status_command(folder, as_json=True)
        content = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
        page = write_page([folder, folder], tmp_path / 'page.html').read_text()
        measure(folder)
        return words, content, page

    return look


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.strange = 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == 'script'
        drawing = tag == 'svg' and dict(attributes).get('aria-hidden') == 'true'  # of a legend
        foreign = tag in ('img', 'svg', 'iframe', 'object') and not drawing
        if foreign or any(name.startswith('on') for name, _ in attributes):
            self.strange.append(tag)


@pytest.mark.parametrize('text', TEXTS)
def test_no_text_of_a_file_is_obeyed_by_a_terminal_or_a_browser(make, look, text):
    words, _, page = look(
        make(
            [batch(stage=text, samples={text: 1})],
            [evaluation(stage=text, set=text, role=text)],
            [{**batch(), 'event': name, 'reason': text, 'signal': text, 'path': text, 'rank': text} for name in NAMES],
            plan_json={'stages': [{'name': text, 'streams': [{'name': text, 'share': text}], 'optimizer_state': text}]},
            environment_json={'versions': {text: text}, 'host': text},
            config_yaml={'run_name': text, 'tokenizer': text, 'model': {'name': text, 'init_from': text}},
        )
    )
    assert not re.search('[^\n\x20-\x7e\xa0-\uffff]|[\u202a-\u202e]', words)
    assert 'is finished' not in [line.strip() for line in words.splitlines()]
    if text.startswith('[bold'):
        assert words.startswith(text)
    elements = Elements(page)
    assert (elements.scripts, elements.strange) == (3, [])  # data, plotly, our own
    assert not re.search(
        '[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]', re.sub(r'<script.*?</script>', '', page, flags=re.S)
    )


@pytest.mark.parametrize('value', [0, 5e-324, 1e39])
def test_numbers_at_their_bounds_are_shown(make, look, value):
    times = ('1971-01-01T00:00:00+00:00', '2099-12-31T23:59:59-23:59', '0001-01-01T00:00:00+23:59')
    largest = {'batch': LARGEST, 'tokens': LARGEST, 'stage_tokens': LARGEST}
    words, content, _ = look(
        make(
            [
                batch(batch=number + 1, lr=value, loss=value, tokens_per_second=value, seconds=1e9 if value else 0)
                for number in range(300)
            ]
            + [batch(**largest, loss=-value)],
            [
                evaluation(**(largest if number else {'tokens': 0, 'stage_tokens': 0}), loss=value * (-1) ** number)
                | {'perplexity': 1.7e308, 'bits_per_byte': 1.7e308, 'role': role, 'tokens_evaluated': LARGEST}
                for number in range(3)
                for role in ('upstream', 'downstream')
            ],
            [
                {'event': name, 'time': time, 'batch': LARGEST, 'tokens': LARGEST, 'stage': 's', 'path': 'ba00000001'}
                | {'seconds': 1e9, 'stall_seconds': 1e9, 'bytes': LARGEST, 'lost_batches': LARGEST}
                for time in times
                for name in (*NAMES, 'finished')
            ],
            plan_json={
                'stages': [
                    {'name': 's', 'tokens': LARGEST, 'batches': LARGEST, 'streams': [{'name': 'a', 'share': '9' * 400}]}
                    | {'schedule': {'name': 'x', 'lr': 1e39, 'min_lr': 5e-324, 'warmup_tokens': LARGEST}}
                ]
            },
        )
    )
    assert content['batch'] == LARGEST
    assert len(words) < 4000


def test_records_in_any_order_and_twice_are_shown(tmp_path, look):
    story = Story(tmp_path / 'run')
    folder = story.start().train(30).save().train(20).evaluate().preempt(20).start().train(5).kill(9).write()
    for name in ('metrics', 'events'):
        path = folder / f'{name}.jsonl'
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(''.join(lines[::-1] + lines[::2]))
    look(folder)


def test_damaged_lines_are_counted_with_file_and_line_in_words_json_and_page(tmp_path, look):
    folder = Story(tmp_path / 'run').start().train(30).write()
    for name in ('metrics', 'events'):
        path = folder / f'{name}.jsonl'
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(''.join([lines[0], '{}\n', '\x00\n', *lines[1:]]))
    words, content, page = look(folder)
    for name in ('metrics.jsonl', 'events.jsonl'):
        said = f'2 damaged lines of {name} left out, the first: {name}:2: damaged: '
        assert said in ' '.join(words.split())
        assert said in page
        assert content['damaged_lines'][name] == 2
    assert content['batch'] == 31


@pytest.mark.parametrize('name', ['metrics.jsonl', 'evals.jsonl', 'events.jsonl', 'plan.json', 'config.yaml'])
@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'lost link'])
def test_what_is_no_regular_file_is_one_line_of_an_error(tmp_path, make_run, look, name, kind):
    folder = make_run('constant', stop=3)
    path = folder / name
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to('/dev/zero' if kind == 'device' else tmp_path / 'gone')
    with pytest.raises(UserError, match=rf'{re.escape(name)}: (damaged: )?.*it is ') as caught:
        look(folder)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('plan.json', '[' * 5000, 'nested'),
        ('plan.json', '{"stages": [{"name": "a", "tokens": "5"}]}', 'stages.0.tokens: should be a valid integer'),
        ('plan.json', '{"stages": [{"name": "a", "tokens": 1e400}]}', 'too large'),
        ('plan.json', '{"stages": {}}', 'stages: should be a valid array'),
        ('environment.json', '{"world_size": -1}', 'world_size: should be greater than or equal to 0'),
        ('environment.json', '{"versions": [1]}', 'versions: should be'),
        ('config.yaml', '[' * 5000, 'nested'),
        ('config.yaml', 'stages: x\n', 'stages: should be a valid list'),
        ('config.yaml', f'seed: {"9" * 5000}\n', 'seed: should be a valid integer'),
        ('config.yaml', 'run_name: 1\nrun_name: 2\n', 'set twice'),
        (
            'config.yaml',
            'a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n'
            + ''.join(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]\n' for n in range(1, 10))
            + 'tokenizer: *a9\n',
            'aliases',
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_place(make_run, look, name, text, words):
    folder = make_run('constant', stop=3)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=f'{re.escape(name)}.*{re.escape(words)}') as caught:
        look(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize('name', ['stage', 'set'])
def test_a_flood_of_names_is_refused_before_it_takes_a_page_each(make, look, name):
    folder = make([batch()], [evaluation(**{name: str(number)}, tokens=number) for number in range(2000)])
    with pytest.raises(UserError, match='more than 1,000'):
        look(folder)


def test_a_secret_in_the_settings_of_an_old_run_is_not_on_the_page(make_run, look):
    folder = make_run('constant', stop=3)
    with (folder / 'config.yaml').open('a') as file:
        file.write('loggers: {neptune: {api_token: hunter2, project: p}}\n')
    _, _, page = look(folder)
    assert 'hunter2' not in page
    assert 'neptune' in page

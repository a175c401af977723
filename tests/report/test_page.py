from __future__ import annotations

import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from rewarm.config.errors import UserError
from rewarm.report.figure import write_figure
from rewarm.report.page import write_page
from rewarm.report.tables import tokens_text
from tests.report.story import Story

ARMS = ('rewarm', 'constant', 'scratch', 'replay', 'same-data')


class Page(HTMLParser):
    """The page's text without scripts, its tables as rows of cells, and its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.inside = ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append(tag)
        self.attributes += attrs
        if tag == 'tr':
            self.rows.append([])
        elif tag in ('th', 'td'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        self.inside = ''

    def handle_data(self, data):
        if self.inside not in ('script', 'style'):
            self.words.append(data)
        if self.inside in ('th', 'td'):
            self.rows[-1][-1] += data.replace('\N{NO-BREAK SPACE}', ' ')

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.words).split())  # also at no-break spaces


def figures(text: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', text).group(1))


def written(folders, tmp_path) -> str:
    return write_page(folders, tmp_path / 'page.html').read_text()


def test_the_stage_table_holds_the_measures(make_run, tmp_path):
    page = Page(written([make_run('rewarm')], tmp_path))
    assert ['code (new)', '7.847', '–', '–', '–', '3.647', '', '', '+4.200', '38.36', '1.814'] in page.rows
    assert [
        'code (old)', '3.647', '4.761', '+1.114', '205 k (26 %)', '4.597', '+0.950', '15 % of rise', '', '99.19', '2.287',
    ] in page.rows  # fmt: skip
    assert ['prose (new)', '5.830', '–', '–', '–', '4.126', '', '', '+1.704', '61.93', '2.053'] in page.rows


def test_what_ran_and_what_was_lost(make_run, tmp_path):
    page = Page(written([make_run('rewarm')], tmp_path))
    assert ['killed', '600', '614 k', '≤ 28.0 s', '41'] in page.rows
    assert ['preempted', '1,300', '1.33 M', '12.0 s', '0'] in page.rows
    assert 'at most 40.0 s in 2 interruptions, 41 batches repeated' in page.text
    assert 'torch 2.13.0+cpu' in page.text
    assert '17,000 tokens/s' in page.text
    assert 'run_name: demo-rewarm' in page.text
    for term in ('Forgetting', 'Recovery', 'Adaptation', 'Rise', 'Re-warming'):
        assert f'{term}:' in page.text


def test_where_the_time_went_adds_up_on_the_page(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().evaluate().train(299).save().train(50).kill().start().train(99).preempt(90).start().train(50).save()
    page = Page(written([story.write()], tmp_path))
    head = page.rows.index(['What', 'Time', 'Share'])
    rows = {row[0]: row[1:] for row in page.rows[head + 1 :][:7]}
    assert list(rows)[-1].startswith('all, from the first start')
    shares = [float(share.removesuffix(' %')) for _, share in rows.values()]
    assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=0.3)  # each is rounded to 0.1
    assert shares[-1] == 100
    assert rows['training batches that count'][0] == '7.5 min'
    assert shares[0] == pytest.approx(100 * 451 / sum(story.truth.values()), abs=0.2)
    assert 'The goodput is the share of batches that count' in page.text


def test_runs_are_compared_from_the_start_of_their_last_stage(make_run, tmp_path):
    text = written([make_run(role) for role in ARMS], tmp_path)
    comparison = figures(text)['figure-1']
    starts = {trace['name']: trace['x'][0] for trace in comparison['data'] if trace['yaxis'] == 'y'}
    assert starts == {f'demo-{role}': 0 for role in ARMS}
    ends = {trace['x'][-1] for trace in comparison['data']}
    assert ends == {798_720}
    low, high = comparison['layout']['yaxis']['range']
    assert low < 3.5
    assert high < 6.5  # the untrained start at 7.8 is cut
    page = Page(text)
    assert '✓ Seen Re-warmed ends below constant on new data: −0.27. demo-rewarm against demo-constant.' in page.text
    forgotten = ['+0.100'] * 3
    assert ['demo-replay', '799 k', '3.647', '+0.447', '3.747', *forgotten, '5.830', '4.178', '+1.652'] in page.rows
    points = {trace['name']: (trace['x'][0], trace['y'][0]) for trace in figures(text)['figure-2']['data'][1:]}
    assert points['demo-rewarm'] == pytest.approx((4.597, 4.126))
    assert 'demo-same-data' not in points


def test_figures_are_valid_plotly_and_plain_json(make_run, tmp_path):
    text = written([make_run('rewarm'), make_run('constant')], tmp_path)
    known = set(re.findall(r'(--[\w-]+):', text.split('</style>')[0]))
    for figure in figures(text).values():
        colours = set(re.findall(r'"(--[\w-]+)"', json.dumps(figure)))
        assert colours <= known
        go.Figure(json.loads(re.sub(r'"--[\w-]+"', '"#000000"', json.dumps(figure))))


def test_the_rate_keeps_its_peak_however_long_the_run(make_run, tmp_path):
    data = figures(written([make_run('rewarm')], tmp_path))['figure-1']['data']
    rate = next(trace for trace in data if trace['name'] == 'learning rate')
    assert max(rate['y']) == 4e-3
    assert len(rate['x']) < 1600
    assert rate['x'] == sorted(rate['x'])


def test_one_file_that_loads_nothing(make_run, tmp_path):
    text = written([make_run('rewarm')], tmp_path)
    page = Page(text.replace(re.search(r'<script>.*?plotly.*?</script>', text, re.S).group(), ''))
    assert not [(key, value) for key, value in page.attributes if key == 'src']
    assert not {'link', 'img', 'iframe', 'object'} & set(page.tags)
    assert "default-src 'none'" in text
    packed = re.search(r'id="plotly">(.*?)</script>', text).group(1)
    assert gzip.decompress(base64.b64decode(packed)).decode().count('plotly.js v') == 1
    assert len(text) < 2_200_000
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ['page.html']


EVIL = '</script><img src=x onerror=alert(1)>"\'&<b>'


def test_texts_from_files_are_escaped(make_run, tmp_path):
    folder = make_run('constant', name='evil')
    for name in ('config.yaml', 'plan.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl', 'environment.json'):
        path = folder / name
        if name == 'config.yaml':
            path.write_text(f'run_name: {json.dumps(EVIL)}\ntokenizer: {json.dumps(EVIL)}\nstages: []\n')
        else:
            quoted = json.dumps(EVIL)
            path.write_text(path.read_text().replace('"prose"', quoted).replace('"laptop"', quoted))
    for folders in ([folder], [folder, make_run('rewarm')]):
        text = written(folders, tmp_path)
        body = text.split('<body>')[1].split('<script>')[0]
        assert '<img' not in body
        assert body.count('</script>') == 2  # the ends of the data and of plotly, which is packed
        assert html.escape(EVIL) in body
        labels = json.dumps([figure['layout'].get('annotations') for figure in figures(text).values()])
        assert '&lt;img' in labels
        assert '<img' not in labels


def test_runs_that_have_only_begun(make_run, tmp_path):
    folder = make_run('constant', stop=0)
    assert 'Not finished' in Page(written([folder], tmp_path)).text
    (folder / 'evals.jsonl').unlink()
    assert 'has not done a batch yet' in Page(written([folder], tmp_path)).text


def test_a_run_without_evaluations_says_whether_it_has_sets(make_run, tmp_path):
    folder = make_run('constant')
    (folder / 'evals.jsonl').unlink()
    config = (folder / 'config.yaml').read_text()
    for folders in ([folder], [folder, folder]):
        for sets, words in (('', 'no evaluation sets'), ('eval: {sets: [{name: code}]}', 'Nothing was evaluated yet')):
            (folder / 'config.yaml').write_text(config + sets)
            assert words in Page(written(folders, tmp_path)).text


def test_a_run_that_ends_in_nan_is_left_out_of_the_trade_off(make_run, tmp_path):
    folders = [make_run('constant', name=name) for name in ('a', 'b', 'lost')]
    evals = folders[-1] / 'evals.jsonl'
    lines = [json.loads(line) for line in evals.read_text().splitlines()]
    for line in lines[-2:]:
        line['loss'] = None  # as the trainer writes NaN
    evals.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    text = written(folders, tmp_path)
    assert 'Left out, with nothing to trade off: lost.' in Page(text).text
    assert {trace['name'] for trace in figures(text)['figure-2']['data'] if trace['mode'] == 'markers'} == {'a', 'b'}


def test_a_folder_that_is_no_run_writes_no_page(make_run, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='not a run folder'):
        write_page([make_run('rewarm'), tmp_path / 'empty'], tmp_path / 'page.html')
    assert not (tmp_path / 'page.html').exists()


def test_counts_of_tokens_read_well():
    values = (0, 999, 1_024_000, 798_720, 999_600, 296_860_000_000)
    assert [tokens_text(v).replace('\N{NO-BREAK SPACE}', ' ') for v in values] == [
        '0',
        '999',
        '1.02 M',
        '799 k',
        '1 M',
        '297 B',
    ]


@pytest.mark.parametrize('suffix', ['.svg', '.png'])
def test_the_figure_is_written_and_the_same_each_time(make_run, tmp_path, suffix):
    folders = [make_run(role) for role in ARMS[:4]]
    first = write_figure(folders, tmp_path / f'a{suffix}').read_bytes()
    assert write_figure(folders[::-1], tmp_path / f'b{suffix}').read_bytes() == first
    assert len(first) < 250_000
    with pytest.raises(UserError, match=r'\.svg or \.png'):
        write_figure(folders, tmp_path / 'a.pdf')

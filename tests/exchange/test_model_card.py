"""The card says what was trained on what; what files hold stays text, and a licence is never made up."""

import io
import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rewarm.exchange import export_command, import_command
from rewarm.exchange.model_card import escape
from rewarm.formats.card import DatasetCard
from rewarm.resume.checkpoint import write
from tests.exchange.conftest import RUN_FILE, make_model, make_tokenizer, state_at


def front_matter(text):
    assert text.startswith('---\n')
    return YAML(typ='safe').load(io.StringIO(text.split('---\n')[1]))


def test_it_says_what_was_trained_on_what_and_how_well_it_does(run, tmp_path, monkeypatch):
    card = DatasetCard(
        version=1, tokenizer_hash='sha256:0', vocab_size=64, eod_id=0, seq_len=8, dtype='uint16', documents=1234,
        tokens=56789, bytes=98765, samples=7098, converter='rewarm 9',
    )  # fmt: skip
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/dataset_card.json').write_text(card.model_dump_json())
    monkeypatch.chdir(tmp_path)  # the run file's paths are relative
    text = (export_command(run / 'checkpoints/ba00000005', tmp_path / 'out') / 'README.md').read_text()
    assert front_matter(text) == {
        'license': 'apache-2.0',
        'base_model': 'EleutherAI/pythia-14m',
        'library_name': 'transformers',
        'pipeline_tag': 'text-generation',
        'language': 'und',
        'tags': ['gpt_neox', 'continual-pretraining', 'rewarm'],
    }
    assert '# small, after 5 batches' in text
    assert '| only | 160 | 320 | law (1) | constant: lr 0.001 | keep |' in text
    assert '| only | law | 1,234 | 56,789 | 98,765 | rewarm 9 |' in text
    assert '| law | 3.5000 | 20.0000 |' in text
    assert '4.0000' not in text  # of another batch
    manifest = json.loads((run / 'checkpoints/ba00000005/manifest.json').read_text())
    assert manifest['files']['state.json']['sha256'] in text


def test_without_data_or_run_it_says_what_the_checkpoint_does(run, tmp_path):
    shutil.copytree(run / 'checkpoints/ba00000010', tmp_path / 'copy')
    text = (export_command(tmp_path / 'copy', tmp_path / 'out') / 'README.md').read_text()
    assert '| only | law | not on this machine |' in text
    assert 'Evaluations' not in text
    assert front_matter(text)['license'] == 'unknown'
    assert 'Licence: unknown' in text


@pytest.mark.parametrize(
    ('file', 'content', 'licence'),
    [
        ('README.md', '---\ntags: [x]\nlicense: MIT\n---\nlicense: gpl', 'mit'),
        ('README.md', 'license: mit', None),
        ('README.md', '---\nlicense: [a, b]\n---\n', None),
        ('README.md', '---\nlicense: "x\\ny: z"\n---\n', None),
        ('LICENSE', '   Apache License\n   Version 2.0, January 2004', 'apache-2.0'),
        ('LICENSE', 'All rights reserved.', None),
    ],
)
def test_a_licence_is_what_the_files_of_the_base_name(hf_folder, tmp_path, file, content, licence):
    shutil.copytree(hf_folder, tmp_path / 'hf')
    (tmp_path / 'hf/README.md').unlink(missing_ok=True)
    (tmp_path / 'hf' / file).write_text(content)
    import_command(str(tmp_path / 'hf'), tmp_path / 'start')
    text = (export_command(tmp_path / 'start', tmp_path / 'out') / 'README.md').read_text()
    assert front_matter(text)['license'] == (licence or 'unknown')
    assert ('unknown. The files of the base model do not name one' in text) == (licence is None)
    assert 'not trained any further' in text


HOSTILE = '](javascript:alert(1)) <img src=x onerror=y> | `# a` **b** \n---\nlicense: mit\n\x1b[31m ${x} [a](b)'


def test_what_files_hold_is_shown_as_text(run, tmp_path):
    state = state_at(7, run_name=HOSTILE, base={'name': HOSTILE, 'licence': 'x\ny: z'})
    state['stages'][0]['identity'] |= {
        'name': HOSTILE,
        'streams': [{'name': HOSTILE, 'share': '<b>'}],
        'schedule_as_written': {'name': HOSTILE, HOSTILE: HOSTILE},
    }
    write(tmp_path, batch=7, model=make_model(7).state_dict(), optimizer={}, state=state)
    (tmp_path / 'config.yaml').write_text(RUN_FILE)
    tokenizer = make_tokenizer(tmp_path / 'x.json')
    text = (
        export_command(tmp_path / 'ba00000007', tmp_path / 'out', tokenizer=str(tokenizer)) / 'README.md'
    ).read_text()
    assert set(front_matter(text)) == {'license', 'base_model', 'library_name', 'pipeline_tag', 'language', 'tags'}
    html = Path(__file__)  # of the parser below; nothing of the texts is an element, a link or a row of its own
    assert html.exists()
    body = text.split('---\n', 2)[2]
    assert '\x1b' not in body
    assert '<img' not in body.replace('\\<img', '')
    assert '](javascript' not in body.replace('\\](javascript', '').replace(']\\(javascript', '')
    for line in body.splitlines():
        cells = line.replace('\\|', '').count('|')
        assert cells in (0, 3, 7), line
    assert escape('a' * 1000) == 'a' * 200 + '\\.\\.\\.' or escape('a' * 1000) == 'a' * 200 + '...'

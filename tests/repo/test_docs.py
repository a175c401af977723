"""The pages of docs speak of commands, options, keys and files that exist, and the page of all keys is current."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from rewarm.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted((ROOT / 'docs').glob('*.md')) if path.stem not in ('log', 'decisions')]
COMMANDS = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def commands_of(text: str) -> list[list[str]]:
    """The lines of bash blocks and the commands between backticks, as words; those of `rewarm` only."""
    lines = [line for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(
        r'`(rewarm [^`\n]+|composer [^`\n]*rewarm [^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    )
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[each.index('rewarm') + 1 :] for each in words if 'rewarm' in each and each[-1] != 'rewarm']


@pytest.mark.parametrize('path', [*PAGES, ROOT / 'README.md'], ids=lambda path: path.stem)
def test_commands_and_options_exist(path):
    found = commands_of(path.read_text())
    assert found or path.stem == 'own-trainer'
    for words in found:
        if words[0].startswith('-'):
            assert words[0] in ('--version', '-h', '--install-completion')
            continue
        assert words[0] in COMMANDS, words
        known = {name for parameter in COMMANDS[words[0]].params for name in parameter.opts}
        assert {word.partition('=')[0] for word in words if word.startswith('--')} <= known, words


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    targets = [target for target in re.findall(r'\]\(([^)#]+)[^)]*\)', path.read_text()) if '://' not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_page_is_in_the_readme():
    readme = (ROOT / 'README.md').read_text()
    assert [path.name for path in PAGES if f'(docs/{path.name})' not in readme] == []


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.stem)
def test_keys_of_the_run_file_exist(path):
    """A key is named by its way: `eval.interval`, `stages[].schedule.lr`."""
    page = (ROOT / 'docs/run-file.md').read_text()
    keys: set[str] = set()
    for section, rows in re.findall(r'^## (.+?)$(.*?)(?=^## |\Z)', page, re.DOTALL | re.MULTILINE):
        way = re.sub(r' \(\w+\)', '', section.strip('`')).replace('Top level', '')
        keys |= {f'{way}.{key}'.strip('.') for key in re.findall(r'^\| `(\w+)`', rows, re.MULTILINE)}
    sections = {key.partition('.')[0].partition('[')[0] for key in keys}
    text = (
        re.sub(r'^\| `.*?` \|', '| |', path.read_text(), flags=re.MULTILINE)
        if 'foundry' in path.stem
        else path.read_text()
    )
    named = re.findall(r'`((?:\w+(?:\[\])?)(?:\.\w+(?:\[\])?)+)`', text)
    ours = {key for key in named if key.partition('.')[0].partition('[')[0] in sections}
    assert {
        key
        for key in ours
        if key.removesuffix('[]') not in keys and not key.endswith(('.py', '.jsonl', '.json', '.safetensors'))
    } == set()


def test_the_page_of_all_keys_is_current():
    script = str(ROOT / 'scripts/run_file_page.py')
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert (ROOT / 'docs/run-file.md').read_text() == made, 'write it again: make schema'


def test_the_task_for_lm_eval_is_yaml_with_what_it_needs():
    (block,) = re.findall(r'```yaml\n(.*?)```', (ROOT / 'docs/evaluate.md').read_text(), re.DOTALL)
    task = YAML(typ='safe', pure=True).load(block)
    assert {
        'task',
        'dataset_path',
        'dataset_kwargs',
        'test_split',
        'doc_to_text',
        'doc_to_target',
        'metric_list',
    } <= task.keys()

"""docs/resume.md speaks of targets, commands, settings and events that exist."""

import json
import re
from pathlib import Path

from rewarm.config.show import schema_text
from tests.repo.test_readme import rewarm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/resume.md').read_text()


def test_links_lead_somewhere():
    links = re.findall(r'\]\(([^)]+)\)', PAGE)
    assert links
    assert [link for link in links if not (ROOT / 'docs' / link).exists()] == []


def test_make_targets_and_commands_exist():
    (block,) = re.findall(r'```bash\n(.*?)```', PAGE, re.DOTALL)
    lines = [line.split('#')[0].split() for line in block.splitlines()]
    targets = [words[1] for words in lines if words[0] == 'make']
    makefile = (ROOT / 'Makefile').read_text()
    assert len(targets) == 4
    assert [target for target in targets if not re.search(rf'^{target}:', makefile, re.MULTILINE)] == []
    for words in (words for words in lines if words[0] == 'rewarm'):
        known = rewarm(words[1], '--help')
        assert [word for word in words if word.startswith('--') and word not in known] == []


def test_settings_exist():
    definitions = json.loads(schema_text())['$defs']
    sections = {'preemption': 'PreemptionConfig', 'checkpoints': 'CheckpointConfig', 'spikes': 'SpikesConfig'}
    named = re.findall(rf'`({"|".join(sections)})\.(\w+)`', PAGE)
    assert len(set(named)) >= 6
    assert [(section, key) for section, key in named if key not in definitions[sections[section]]['properties']] == []


def test_events_are_recorded():
    section = PAGE.partition('## What happens when')[2].partition('\n## ')[0]
    rows = [line.split('|') for line in section.splitlines() if line.startswith('|')]
    events = {name for row in rows for name in re.findall(r'`(\w+)`', row[3])}
    code = ''.join(path.read_text() for path in (ROOT / 'rewarm').rglob('*.py'))
    assert len(events) >= 14
    assert {name for name in events if f"'{name}'" not in code and f'{name}=' not in code} == set()

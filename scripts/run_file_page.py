"""Writes docs/run-file.md, every key of a run file, from its JSON Schema: python scripts/run_file_page.py > docs/run-file.md"""

import json
from collections.abc import Iterator
from typing import Any

from rewarm.config.show import schema_text

HEAD = """# The run file, key by key

Written by `make schema` from the JSON Schema that `rewarm schema` prints; editors complete and check a run file by it
(`# yaml-language-server: $schema=run.schema.json` in its first line). `rewarm new NAME` writes a first file for your data, and
`rewarm plan RUN.yaml` says at once what is wrong with one. Complete examples: [yamls](../yamls), or `rewarm examples DIR`.

- A length is a number with its unit: `2.97e9tok` tokens, `500ba` batches, `1%` of the stage's budget, `10min`, `25sec`, `3h`.
- `${run_name}`, or another top-level key with a plain value, may stand in any text. `~` and `$NAME` are put into paths.
- On the command line a key is given by its way: `stages.0.schedule.lr=1e-4`, `eval.sets=[]`.
"""


def page() -> str:
    """The page, as Markdown."""
    schema: dict[str, Any] = json.loads(schema_text())
    return '\n'.join([HEAD, *_section('', schema, schema['$defs'])])


def _section(way: str, section: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    """A section's table, and behind it those of the sections in it."""
    yield f'## {f"`{way}`" if way else "Top level"}\n\n{section["description"]}\n\n| key | default | meaning |\n|---|---|---|'
    required = section.get('required', ())
    yield '\n'.join(_row(key, value, required=key in required) for key, value in section['properties'].items()) + '\n'
    for key, value in section['properties'].items():
        for suffix, part in _below(value, definitions):
            yield from _section(f'{way}.{key}'.strip('.') + suffix, part, definitions)


def _below(value: dict[str, Any], definitions: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The sections that a key holds, with what is behind the key on the way to them."""
    found = [('', ref) for ref in _refs(value)] + [('[]', ref) for ref in _refs(value.get('items', {}))]
    kinds = [(suffix, definitions[ref.rpartition('/')[2]]) for suffix, ref in found]
    return [
        (f' ({kind["properties"]["name"]["const"]})' if len(kinds) > 1 else suffix, kind)
        for suffix, kind in kinds
        if 'properties' in kind
    ]


def _refs(value: dict[str, Any]) -> list[str]:
    inside = [ref for way in ('anyOf', 'oneOf') for each in value.get(way, ()) for ref in _refs(each)]
    return [*inside, value['$ref']] if '$ref' in value else inside


def _row(key: str, value: dict[str, Any], *, required: bool) -> str:
    choices = [each for option in [value, *value.get('anyOf', ())] for each in option.get('enum', ())]
    text = str(value.get('description', 'Which curve.')).replace('|', '\\|')
    if choices:
        text += f' One of {", ".join(f"`{each}`" for each in choices)}.'
    if (items := value.get('items', {}).get('enum')) is not None:
        text += f' Of {", ".join(f"`{each}`" for each in items)}.'
    return f'| `{key}` | {"required" if required else _default(value)} | {text} |'


def _default(value: dict[str, Any]) -> str:
    default = value.get('default')
    if _refs(value):  # a section, which has a table of its own
        return ''
    return '' if default is None else f'`{json.dumps(default, ensure_ascii=False)}`'.replace('"', '')


if __name__ == '__main__':
    print(page(), end='')

"""YAML text to plain data with the line of every value; what is no YAML, or too much of it, in words.

A run file has some hundred values, a few levels deep. Aliases can make ten million of ten lines, and brackets a recursion
that Python does not survive: both are bounded while they are read.
"""

import re
import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import YAMLError

from rewarm.config.located import Loc, Source, dotted

DEEPEST = 40
"""Levels of nesting; the settings have six, and a logger may be given some of its own."""

MOST_VALUES = 10_000
"""Values and keys, those that aliases repeat included."""

LARGEST_INTEGER_BITS = 256
"""An integer beyond is no setting, and Python does not print one of 4,300 digits."""

_NESTED = f'nested more than {DEEPEST} levels deep, which no setting is'
_TOO_MANY = f'more than {MOST_VALUES:,} keys and values, which no run file has; aliases count as what they repeat'
_STANDARD_TAGS = ('null', 'bool', 'int', 'float', 'str', 'timestamp', 'merge', 'value')
_UNSEEN_BREAK = re.compile('[\x85\u2028\u2029]')
_TOO_DEEP = re.compile(rf'(?:[\[{{]\s*){{{DEEPEST + 1}}}')
"""The scanner takes seconds for a thousand brackets in a row before it gives the first one."""
_OTHER_YAML = re.compile(r'^%YAML\s+(?!1\.2\s)', re.MULTILINE)


def parse_yaml(text: str, source: Source, at: Loc, line: int | None = None) -> Any:
    """Reads YAML 1.2 into plain data.

    Args:
        text (str): YAML.
        source (Source): Gets the lines, and the problems that leave the text readable (keys that are there twice, tags).
        at (Loc): Where the data will be.
        line (int | None): Stands for every line when the text is not the file's.

    Returns:
        Any: Dicts, lists and scalars; None for an empty text.

    Raises:
        ConfigError: If it is not YAML, or too much of it.
    """
    _refuse_other_yaml(text, source, line)
    yaml: Any = YAML(typ='safe', pure=True)  # ruamel.yaml comes without types
    yaml.max_depth = DEEPEST
    yaml.Composer = _BoundedComposer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of an anchor that is there twice
            node = yaml.compose(text)
    except (YAMLError, ValueError, RecursionError) as error:
        where, what = _explain(error, text)
        raise source.error([*source.problems, (where if line is None else line, what)]) from None
    if node is None:
        return None
    rest = text[node.end_mark.index :].lstrip()
    if line is not None and rest.startswith('#'):
        problem = (
            f'`{dotted(at)}={text}`: YAML reads ` #` and what follows as a comment. Put the value in quotes of its own'
        )
        source.problems.append((line, f'{problem}: {dotted(at)}=\'"..."\''))
    return _Reader(yaml, source, line).plain(node, at)


def _refuse_other_yaml(text: str, source: Source, line: int | None) -> None:
    if found := _UNSEEN_BREAK.search(text):
        what = f'the character U+{ord(found[0]):04X} breaks the line where no editor shows it. Remove it'
    elif found := _OTHER_YAML.search(text):
        what = 'run files are YAML 1.2, in which `no` is a text and 017 is 17. Remove the directive `%YAML`'
    elif found := _TOO_DEEP.search(text):
        what = _NESTED
    else:
        return
    raise source.error([*source.problems, (line if line is not None else _line_of(text, found.start()), what)])


def _line_of(text: str, position: int) -> int:
    return len(re.findall('\r\n|\r|\n', text[:position])) + 1


def _explain(error: Exception, text: str) -> tuple[int, str]:
    """The line of what is not YAML, and words for it."""
    mark: Any = getattr(error, 'problem_mark', None)
    what = ' '.join(str(getattr(error, 'problem', None) or error).split())
    line = mark.line + 1 if mark else 1
    if what == _TOO_MANY:
        return line, what
    if isinstance(error, RecursionError) or 'maximum depth' in what:
        return line, _NESTED
    if "character '\\t'" in what:
        return line, 'not valid YAML: a tab. Indent with spaces, and put a space after a `:`'
    if 'another document' in what:
        return line, 'a second document begins here. A run file has one: remove the `---`, or make two files'
    if 'special characters' in what:
        position = int(getattr(error, 'position', 0))
        character = int(getattr(error, 'character', 0))
        return _line_of(text, position), f'not valid YAML: the control character U+{character:04X}. Remove it'
    return line, f'not valid YAML: {what}'


class _TooManyError(YAMLError):
    def __init__(self, mark: Any) -> None:
        self.problem, self.problem_mark = _TOO_MANY, mark


class _BoundedComposer(Composer):  # pyright: ignore
    """Stops at the first value too many, instead of reading a flood of them to its end."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)  # pyright: ignore
        self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value with all that is in it."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise _TooManyError(self.parser.peek_event().start_mark)  # pyright: ignore
        return super().compose_node(parent, index)  # pyright: ignore


class _Reader:
    def __init__(self, yaml: Any, source: Source, line: int | None) -> None:
        self.yaml, self.source, self.fixed_line = yaml, source, line
        self.open: list[Any] = []
        self.values = 0

    def line(self, node: Any) -> int:
        return self.fixed_line if self.fixed_line is not None else node.start_mark.line + 1

    def plain(self, node: Any, loc: Loc) -> Any:
        self.source.lines.setdefault(loc, self.line(node))
        self.count(node, loc)
        if any(node is outer for outer in self.open):
            raise self.source.error([(self.line(node), f'`{dotted(loc)}` contains itself through an alias')])
        self.open.append(node)
        try:
            if node.id == 'mapping':
                return self.mapping(node, loc)
            if node.id == 'sequence':
                return [self.plain(item, (*loc, index)) for index, item in enumerate(node.value)]
            return self.scalar(node, loc)
        finally:
            self.open.pop()

    def count(self, node: Any, loc: Loc) -> None:
        self.values += 1
        if self.values > MOST_VALUES:
            raise self.source.error([(self.line(node), _TOO_MANY)])
        if len(loc) > DEEPEST:
            raise self.source.error([(self.line(node), _NESTED)])

    def mapping(self, node: Any, loc: Loc) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.id != 'scalar':
                self.source.problems.append((self.line(key_node), f'a key in `{dotted(loc)}` is not plain text'))
                continue
            key = str(key_node.value)
            here = (*loc, key)
            if key in content:
                first = self.source.lines[here]
                text = f'`{dotted(here)}` is set twice, first on line {first}. Remove one'
                self.source.problems.append((self.line(key_node), text if first else f'`{dotted(here)}` is set twice'))
                continue
            self.source.lines[here] = self.line(key_node)
            content[key] = self.plain(value_node, here)
        return content

    def scalar(self, node: Any, loc: Loc) -> Any:
        text = str(node.value)
        tag = str(node.tag).rpartition(':')[2]
        if tag not in _STANDARD_TAGS:
            self.source.problems.append((self.line(node), f'`{dotted(loc)}` has the tag `{node.tag}`; remove it'))
            return text
        if tag in ('timestamp', 'merge', 'value'):
            return text
        try:
            value = self.yaml.constructor.construct_object(node, deep=True)
        except (ValueError, KeyError, IndexError, TypeError):  # a tag that says what the text is not
            return text
        return text if isinstance(value, int) and value.bit_length() > LARGEST_INTEGER_BITS else value

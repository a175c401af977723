"""The standard library as documents: what is code, what is prose, what is held out."""

import ast

from rewarm.demo import stdlib

SOURCE = '''"""Module prose."""
# a comment
import os  # another


class A:
    """Class prose,
    two lines."""

    name = '# not a comment'

    def f(self):
        """Method prose."""
        return """not a docstring"""  # gone

    async def g(self):
        # only
        return 1


if os:
    def h():
        "Prose in a branch."
        x = 1
        "a string that is no docstring"
'''

CODE = '''import os


class A:
    name = '# not a comment'

    def f(self):
        return """not a docstring"""

    async def g(self):
        return 1


if os:
    def h():
        x = 1
        "a string that is no docstring"
'''


def test_code_keeps_strings_and_loses_docstrings_and_comments():
    code = stdlib.code_without_prose(SOURCE, ast.parse(SOURCE))
    assert code == CODE


def test_docstrings_are_found_at_every_depth_and_other_strings_are_not():
    found = {ast.literal_eval(expr.value).split()[0] for expr in stdlib.docstrings(ast.parse(SOURCE))}
    assert found == {'Module', 'Class', 'Method', 'Prose'}


def test_tests_give_prose_and_no_code(tmp_path):
    long = 'A docstring that is longer than sixty characters, so that it says something.'
    for name in ('test/a.py', 'b.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'def f():\n    """{long}"""\n    return 1\n')
    assert stdlib.read_file(str(tmp_path / 'test/a.py')) == ('', [long])
    assert stdlib.read_file(str(tmp_path / 'b.py')) == ('def f():\n    return 1\n', [long])
    (tmp_path / 'python2.py').write_text('print "no"\n')
    (tmp_path / 'latin.py').write_bytes(b'x = "\xe9"\n')
    assert stdlib.read_file(str(tmp_path / 'python2.py')) == ('', [])
    assert stdlib.read_file(str(tmp_path / 'latin.py')) == ('', [])


def test_who_is_held_out_depends_on_the_name_alone():
    held_out = [n for n in range(2400) if stdlib.Document(f'package/module{n}.py', '').held_out]
    assert 150 < len(held_out) < 250  # one in twelve
    assert all(stdlib.Document(f'package/module{n}.py', 'other text').held_out for n in held_out)

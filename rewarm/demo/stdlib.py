"""The installed Python's own standard library as documents: its code without prose, and its prose.

Nothing is downloaded, and the same Python gives the same documents.
"""

import ast
import hashlib
import io
import re
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

__all__ = ['OFTEN_LEFT_OUT', 'Document', 'code_without_prose', 'docstrings', 'read_file', 'read_stdlib']

HELD_OUT = 12  # one file in 12 is for validation
LEAST_DOCSTRING = 60  # characters; shorter ones are mostly "Return the foo."

TESTS = {'test', 'tests', 'idle_test'}
OFTEN_LEFT_OUT = ('test', 'idlelib', 'tkinter', 'pydoc_data')  # by Linux distributions and stand-alone builds
NOT_OLD = {'encodings', 'pydoc_data'}  # tables rather than code


class Document(NamedTuple):
    """One document of the corpus.

    Args:
        source (str): Path below the standard library's folder, or ``help:<topic>``.
        text (str): The text.
    """

    source: str
    text: str

    @property
    def rank(self) -> int:
        """A number from the name alone: who is held out and who comes first do not depend on the other documents."""
        return int(hashlib.sha1(self.source.encode()).hexdigest(), 16)

    @property
    def held_out(self) -> bool:
        """Whether it is for validation. Code and docstrings of one file are on the same side."""
        return self.rank % HELD_OUT == 0


def docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Finds the docstrings of a module, its classes and functions, in no particular order.

    Args:
        tree (ast.Module): A parsed module.

    Yields:
        ast.Expr: The statement that is the docstring.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(ast.Constant(str())) as first:
                    yield first
        for block in ('body', 'orelse', 'handlers', 'finalbody'):  # statements only: expressions hold no docstring
            children = getattr(node, block, [])
            waiting += children if isinstance(children, list) else []


def code_without_prose(source: str, tree: ast.Module) -> str:
    """Removes docstrings and comments, and the empty lines they leave.

    Args:
        source (str): A module's source.
        tree (ast.Module): The same, parsed.

    Returns:
        str: The code, for reading: a function that was only a docstring has lost its body.
    """
    starts = {(expr.lineno, expr.col_offset) for expr in docstrings(tree)}
    cuts = [
        (token.start, token.end)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.start in starts)
    ]
    lines = io.StringIO(source).readlines()
    for (first, start), (last, end) in reversed(cuts):
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    text = '\n'.join(line.rstrip() for line in ''.join(lines).split('\n'))
    text = re.sub(r':\n\n+', ':\n', text)  # where the docstring was
    return re.sub(r'\n{4,}', '\n\n\n', text).strip() + '\n'


def read_file(path: str) -> tuple[str, list[str]]:
    """Reads one module.

    Args:
        path (str): The file.

    Returns:
        tuple[str, list[str]]: Its code without prose ('' for tests and files that are no Python 3), and its longer docstrings in order.
    """
    is_test = bool(TESTS & set(Path(path).parts))
    try:
        source = Path(path).read_text('utf-8')
        if is_test and '"""' not in source:
            return '', []  # the tests are half of the library, and parsing them is most of the time
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', SyntaxWarning)
            warnings.simplefilter('ignore', DeprecationWarning)
            tree = ast.parse(source)
        code = '' if is_test else code_without_prose(source, tree)
    except (UnicodeDecodeError, SyntaxError, ValueError, tokenize.TokenError):
        return '', []
    found = sorted(docstrings(tree), key=lambda expr: expr.lineno)
    texts = [ast.get_docstring(ast.Module([expr], [])) or '' for expr in found]
    return code, [text for text in texts if len(text) > LEAST_DOCSTRING]


def read_stdlib(root: Path, workers: int) -> tuple[list[Document], list[Document]]:
    """Reads the whole standard library.

    Args:
        root (Path): Its folder.
        workers (int): Processes that parse.

    Returns:
        tuple[list[Document], list[Document]]: Old documents (code) and new ones (prose), each distinct, ordered by path.
    """
    paths = []
    for path in sorted(root.rglob('*.py')):
        parts = path.relative_to(root).parts
        of_this_build = parts[0].startswith(('_sysconfigdata', 'config-', 'sitecustomize'))
        if not of_this_build and not {'site-packages', 'dist-packages', '__pycache__'} & set(parts):
            paths.append(path)
    old, new, seen = [], [], set()

    def is_fresh(text: str) -> bool:
        """Whether this text has not been seen before and can be written (lone surrogates cannot)."""
        fresh = text not in seen and text == text.encode('utf-8', 'ignore').decode('utf-8')
        seen.add(text)
        return fresh

    with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
        results = pool.map(read_file, map(str, paths), chunksize=16)
        for path, (code, found) in zip(paths, watch(results, len(paths), 'reading the standard library'), strict=True):
            name = path.relative_to(root)
            if len(code) > 200 and name.parts[0] not in NOT_OLD and is_fresh(code):
                old.append(Document(str(name), code))
            distinct = [text for text in found if is_fresh(text)]
            if distinct:
                new.append(Document(str(name), '\n\n'.join(distinct)))
    return old, new + [Document(f'help:{name}', text) for name, text in sorted(help_topics().items()) if is_fresh(text)]


def help_topics() -> dict[str, str]:
    """Returns the texts of Python's ``help('topics')``; none where a distribution has left them out."""
    try:
        from pydoc_data import topics
    except ImportError:
        return {}
    return topics.topics


def watch(items: Iterator, total: int, what: str) -> Iterable:
    """Shows progress: a bar on a terminal, a line now and then in a log."""
    return tqdm(items, what, total, unit=' files', mininterval=0.2 if sys.stderr.isatty() else 10)

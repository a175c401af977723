"""Makes the demo's text and tokenizer from the installed Python's own standard library: nothing is downloaded.

Old data is code without docstrings and comments; new data is docstrings and the topics of ``help()``. A strong shift: code to prose.
Writes into one folder: ``old.jsonl`` (upstream), ``old-unseen.jsonl`` (more of the same, for the same-data control),
``old-val.jsonl``, ``new.jsonl``, ``new-val.jsonl`` (one ``{"text", "meta"}`` a line) and ``tokenizer.json``.
The same Python gives the same bytes every time.

    python scripts/demo/corpus.py data/demo/text
"""

import argparse
import ast
import hashlib
import io
import json
import os
import re
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

__all__ = ['Document', 'build', 'code_without_prose', 'docstrings', 'read_stdlib', 'train_tokenizer']

VOCAB_SIZE = 2048
HELD_OUT = 12  # one file in 12 is for validation
VAL_CHARACTERS = 110_000  # of each validation set: about 36,000 tokens, evaluated in about a second
UPSTREAM_TOKENS = 1_030_000  # 1,000 batches of 1,024 tokens and a little: no window is read twice
STAGE_TOKENS = 798_720  # 780 batches: what the second stage reads of new (or unseen old) text
LEAST_TOKENS = 0.45  # of STAGE_TOKENS; with less the second stage would be several passes over the same text
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


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Trains the demo's byte-level BPE of 2,048 tokens, built like GPT-NeoX's own: NFC, ``<|endoftext|>`` is token 0.

    Args:
        texts (list[str]): Training text of both domains. (The paper's tokenizer knew only the old data; a tokenizer of old text
            alone would spend 14 % more tokens on the new.)

    Returns:
        Tokenizer: The tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=['<|endoftext|>', '<|padding|>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def middles(documents: list[Document]) -> list[Document]:
    """Shortens long documents to the lines around their middle, so that a small validation set still has every held-out file."""
    lengths = [len(document.text) for document in documents]
    limits = range(20_000, 0, -100)
    limit = next(limit for limit in limits if sum(min(n, limit) for n in lengths) <= VAL_CHARACTERS)

    def middle(text: str) -> str:
        start = (len(text) - limit) // 2
        return text if start <= 0 else text[start : start + limit].partition('\n')[2]

    return [Document(document.source, middle(document.text)) for document in documents]


def check_amounts(tokens: dict[str, int], root: Path) -> list[str]:
    """Checks that there is enough text for the demo.

    Args:
        tokens (dict[str, int]): Tokens of each set.
        root (Path): The standard library's folder, for the message.

    Returns:
        list[str]: What to tell the user when there is less than usual.

    Raises:
        SystemExit: With code 2, if there is too little for the demo to mean anything.
    """
    missing = [name for name in OFTEN_LEFT_OUT if not (root / name).is_dir()]
    without = f' (no {", ".join(missing)} in {root})' if missing else ''
    least = {'old': UPSTREAM_TOKENS, 'old-unseen': LEAST_TOKENS * STAGE_TOKENS, 'new': LEAST_TOKENS * STAGE_TOKENS}
    for name, needed in least.items():
        if tokens[name] < needed:
            print(
                f'The standard library of this Python holds too little text for the demo: {tokens[name]:,} tokens of {name} data '
                f'and at least {needed:,.0f} are needed{without}. Write: make demo PYTHON=/path/to/a/complete/python3',
                file=sys.stderr,
            )
            raise SystemExit(2)
    return [
        f'Less {name} text than the second stage reads{without}: it goes over its {tokens[name]:,} tokens {STAGE_TOKENS / tokens[name]:.1f} times.'
        for name in ('old-unseen', 'new')
        if tokens[name] < 0.95 * STAGE_TOKENS
    ]


def build(root: Path, out: Path, workers: int) -> dict[str, int]:
    """Builds the demo's text and tokenizer.

    Args:
        root (Path): The standard library's folder.
        out (Path): Folder to write to; made if needed, its files replaced.
        workers (int): Processes that parse.

    Returns:
        dict[str, int]: Tokens of each set, an end-of-text after each document counted.

    Raises:
        SystemExit: If the library holds too little text.
    """
    old, new = (sorted(documents, key=lambda document: document.rank) for documents in read_stdlib(root, workers))
    train = {name: [d for d in documents if not d.held_out] for name, documents in (('old', old), ('new', new))}
    tokenizer = train_tokenizer([document.text for documents in train.values() for document in documents])

    def count(documents: list[Document]) -> list[int]:
        """Tokens of each document, and one for the end-of-text after it."""
        return [len(encoding.ids) + 1 for encoding in tokenizer.encode_batch([document.text for document in documents])]

    lengths = count(train['old'])
    # Upstream takes files until it has enough, and the same-data control has the rest.
    upstream = next((n for n, total in enumerate(accumulate(lengths), 1) if total >= UPSTREAM_TOKENS), len(lengths))
    sets = {
        'old': train['old'][:upstream],
        'old-unseen': train['old'][upstream:],
        'old-val': middles([document for document in old if document.held_out]),
        'new': train['new'],
        'new-val': middles([document for document in new if document.held_out]),
    }
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / 'tokenizer.json'))
    for name, documents in sets.items():
        lines = (json.dumps({'text': text, 'meta': {'source': source}}) + '\n' for source, text in documents)
        (out / f'{name}.jsonl').write_text(''.join(lines), 'utf-8')
    tokens = {'old': sum(lengths[:upstream]), 'old-unseen': sum(lengths[upstream:])}
    tokens |= {name: sum(count(sets[name])) for name in sets if name not in tokens}
    for name, documents in sets.items():
        characters = sum(len(document.text) for document in documents)
        print(f'  {name:<11}{len(documents):5,} documents {characters:10,} characters {tokens[name]:10,} tokens')
    for message in check_amounts(tokens, root):
        print(message)
    return tokens


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(
        description='Makes the text and the tokenizer of the demo from the standard library of this Python.'
    )
    parser.add_argument('out', type=Path, help='folder for the five .jsonl files and tokenizer.json')
    stdlib = Path(sysconfig.get_paths()['stdlib'])
    parser.add_argument('--stdlib', type=Path, default=stdlib, help='default: %(default)s')
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)), help='default: %(default)s')
    arguments = parser.parse_args()
    started_at = time.monotonic()
    build(arguments.stdlib, arguments.out, arguments.workers)
    print(f'  {time.monotonic() - started_at:.0f} s -> {arguments.out}')


if __name__ == '__main__':
    main()

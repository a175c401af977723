"""Text to tokens: which tokenizer, which encoder runs it, and when the fast one may.

`tokenizers` is the definition: Pythia was trained with it. `gigatoken` is twenty times faster and equal on most text.
A document goes through it only if no difference is possible (see `unsafe_code_points`); every conversion checks a sample as well.
"""

import contextlib
import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewarm.config.errors import DamagedFile, UserError
from rewarm.data.reading import SAFE_CUT
from rewarm.formats.tokenizer import read_eos_token, read_tokenizer_file
from rewarm.formats.tokenizer_files import find_tokenizer

__all__ = [
    'Encoder',
    'EncoderName',
    'ParityError',
    'TokenizerFacts',
    'find_tokenizer',
    'read_tokenizer',
    'unsafe_code_points',
]

EncoderName = Literal['auto', 'gigatoken', 'tokenizers']

_SEGMENT_CHARACTERS = 1 << 20
_SAMPLE_CHARACTERS = 4096


@dataclass(frozen=True)
class TokenizerFacts:
    """What a conversion needs to know of a tokenizer."""

    path: str
    """The ``tokenizer.json``."""
    vocab_size: int
    """One more than the largest id."""
    eod: str
    """Content of the token that ends a document."""
    eod_id: int
    """Its id."""
    encoder: Literal['gigatoken', 'tokenizers']
    """Which library encodes."""
    why: str
    """That choice in words, with versions."""

    @property
    def dtype(self) -> Literal['uint16', 'uint32']:
        """Smallest type that holds every id."""
        return 'uint16' if self.vocab_size <= 1 << 16 else 'uint32'


def read_tokenizer(path: Path, *, eod: str | None = None, encoder: EncoderName = 'auto') -> TokenizerFacts:
    """Reads a tokenizer, finds its end-of-document token and chooses the encoder.

    Args:
        path (Path): The ``tokenizer.json``.
        eod (str | None): Content of the token that ends a document; None takes the one its own files name.
        encoder (EncoderName): ``auto`` is `gigatoken` where it is installed and known to be equal.

    Returns:
        TokenizerFacts: The facts.

    Raises:
        UserError: If the tokenizer cannot be read, has no such token, or cannot be run by the encoder asked for.
    """
    import tokenizers

    file = read_tokenizer_file(path)
    with _in_words(f'{path}: not a tokenizer that `tokenizers` can read'):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if vocabulary != file.ids:  # the library counts on from the vocabulary, whatever the file says
        token = min(vocabulary.items() ^ file.ids.items())[0]
        raise DamagedFile(
            path,
            place=f'the token {token!r:.60}',
            what=f'has the id {file.ids.get(token)}, and `tokenizers` gives it {vocabulary.get(token)}',
        )
    eod = eod if eod is not None else _default_eod(path, vocabulary)
    if eod not in vocabulary:
        raise UserError(f'{path}: has no token {eod!r:.60}; name the one that ends a document with --eod')
    chosen, why = _choose_encoder(file.content, encoder)
    return TokenizerFacts(str(path), file.num_ids, eod, vocabulary[eod], chosen, why)


@contextlib.contextmanager
def _in_words(problem: str) -> Iterator[None]:
    """Says what fails in an encoder: `tokenizers` raises plain Exception, and where its Rust gives up a BaseException."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
            raise
        raise UserError(f'{problem} ({str(error).partition(chr(10))[0]:.200})') from None


def _default_eod(path: Path, vocabulary: dict[str, int]) -> str:
    named = read_eos_token(path.with_name('tokenizer_config.json'))
    if named is not None and named in vocabulary:
        return named
    if '<|endoftext|>' in vocabulary:
        return '<|endoftext|>'
    raise UserError(f'{path}: it is not said which token ends a document; name it with --eod, such as --eod "</s>"')


def _choose_encoder(content: dict[str, Any], asked: EncoderName) -> tuple[Literal['gigatoken', 'tokenizers'], str]:
    from importlib.metadata import PackageNotFoundError, version

    slow = f'tokenizers {version("tokenizers")}'
    if asked == 'tokenizers':
        return 'tokenizers', f'{slow}, as asked for'
    obstacle = _gigatoken_obstacle(content)
    try:
        fast = f'gigatoken {version("gigatoken")}'
    except PackageNotFoundError:
        obstacle = 'gigatoken is not installed (pip install "rewarm[convert]" makes this many times faster)'
        fast = ''
    if obstacle is None:
        return 'gigatoken', f'{fast}; text on which it could differ goes through {slow}, and a sample is compared'
    if asked == 'gigatoken':
        raise UserError(f'--encoder gigatoken: {obstacle}. Use --encoder tokenizers')
    return 'tokenizers', f'{slow}, because {obstacle}'


def _gigatoken_obstacle(config: dict[str, Any]) -> str | None:
    """Why gigatoken may not run this tokenizer: it is used for what was compared, GPT-NeoX's kind, and no other."""
    model, splitter = config.get('model') or {}, config.get('pre_tokenizer') or {}
    unusual = (
        'dropout',
        'byte_fallback',
        'unk_token',
        'continuing_subword_prefix',
        'end_of_word_suffix',
        'ignore_merges',
    )
    if model.get('type') != 'BPE' or any(model.get(key) for key in unusual):
        return 'the model is not plain byte-level BPE'
    if (config.get('normalizer') or {'type': 'NFC'}).get('type') != 'NFC':
        return 'the normalizer is not NFC'
    if splitter.get('type') != 'ByteLevel' or splitter.get('add_prefix_space') or not splitter.get('use_regex', True):
        return "the pre-tokenizer is not GPT-2's"
    if any(token.get(key) for token in config.get('added_tokens') or () for key in ('lstrip', 'rstrip', 'single_word')):
        return 'some added tokens match by what is beside them'
    return None


@functools.cache
def unsafe_code_points() -> NDArray[np.bool_]:
    """For each code point, whether the two encoders may differ on it.

    They normalise and split with tables of different Unicode versions: they disagree on the order of 154 combining
    marks and on what is a letter among some 4,700 recent code points. All others, that is every code point which this
    Python knows (Unicode 14 or later, older than both), that never reorders and never composes, is the same to both.

    Returns:
        NDArray[np.bool_]: ``(0x110000,)``.
    """
    unsafe = np.ones(0x110000, np.bool_)
    composing = [*range(0x1160, 0x1200)]  # Hangul vowels and finals compose by rule, not by table
    for code in range(0x32000):  # above lie planes without characters, tags and private planes
        character = chr(code)
        pieces = unicodedata.decomposition(character).split()
        if len(pieces) == 2 and not pieces[0].startswith('<'):
            composing.append(int(pieces[1], 16))
        unsafe[code] = (
            unicodedata.category(character) in ('Cn', 'Cs')
            or unicodedata.combining(character) != 0
            or not unicodedata.is_normalized('NFC', character)
        )
    unsafe[composing] = True
    return unsafe


class ParityError(UserError):
    """The two encoders gave different tokens for the same text."""


class Encoder:
    """Encodes documents, one at a time, in one process.

    Args:
        facts (TokenizerFacts): The tokenizer and the encoder chosen.
    """

    def __init__(self, facts: TokenizerFacts) -> None:
        import tokenizers

        self.facts = facts
        config = read_tokenizer_file(facts.path).content
        added = config.get('added_tokens') or []
        for token in added:
            # Whatever ends a document must not be matched inside one, and only special tokens can be told not to.
            token['special'] = token.get('special') or token['content'] == facts.eod
        with _in_words(f'{facts.path}: not a tokenizer that `tokenizers` can read'):
            self._exact = tokenizers.Tokenizer.from_str(json.dumps(config))
        self._exact.encode_special_tokens = True  # a literal <|endoftext|> is text
        self._exact.no_truncation()
        self._exact.no_padding()
        self._may_cut = 'ByteLevel' in json.dumps(config.get('pre_tokenizer'))
        self._fast: Any = None
        if facts.encoder == 'gigatoken':
            import gigatoken

            with _in_words(f'{facts.path}: gigatoken cannot read it; convert with --encoder tokenizers'):
                self._fast = gigatoken.Tokenizer.from_json(json.dumps(config))
        # gigatoken always matches added tokens; runs of spaces are the same to both.
        literal = [re.escape(token['content']) for token in added if not token['content'].isspace()]
        self._literal = re.compile('|'.join(literal) or r'(?!)')

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Tokens of one document, without EOD.

        Args:
            text (str): The document.

        Returns:
            NDArray[np.uint32]: ``(tokens,)`` ids.
        """
        pieces = [self._encode_segment(segment) for segment in self._segments(text)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def fast_can(self, text: str) -> bool:
        """Whether gigatoken encodes this text as `tokenizers` does, by its characters."""
        if self._fast is None or self._literal.search(text):
            return False
        if text.isascii():
            return True
        return not unsafe_code_points()[np.frombuffer(text.encode('utf-32-le'), np.uint32)].any()

    def check(self, texts: Sequence[str]) -> None:
        """Compares the encoders on the beginning of some documents.

        Raises:
            ParityError: If they differ; names the text and the way out.
        """
        if self._fast is None:
            return
        for text in texts:
            sample = text[:_SAMPLE_CHARACTERS]
            if self.fast_can(sample) and self._encode_fast(sample).tolist() != self._encode_exactly(sample).tolist():
                raise ParityError(
                    f'gigatoken and tokenizers disagree on a document that begins {text[:60]!r}. Nothing was published. '
                    'Convert with --encoder tokenizers (slower, and exact by definition), and please report the text'
                )

    def _encode_segment(self, text: str) -> NDArray[np.uint32]:
        return self._encode_fast(text) if self.fast_can(text) else self._encode_exactly(text)

    def _encode_fast(self, text: str) -> NDArray[np.uint32]:
        return self._fast.encode(text)

    def _encode_exactly(self, text: str) -> NDArray[np.uint32]:
        with _in_words(f'{self.facts.path}: `tokenizers` fails on the text that begins {text[:60]!r}'):
            return np.array(self._exact.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.uint32)

    def _segments(self, text: str) -> Iterator[str]:
        """Cuts a very long document where that changes no token: encoding needs a hundred bytes a token or more."""
        start = 0
        while self._may_cut and len(text) - start > 2 * _SEGMENT_CHARACTERS:
            match = SAFE_CUT.search(text, start + _SEGMENT_CHARACTERS)
            if match is None:
                break
            yield text[start : match.end()]
            start = match.end()
        yield text[start:]

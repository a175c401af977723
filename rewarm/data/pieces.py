"""A part of a file to tokens: the work of one worker, which looks at nothing but the part."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.data.documents import Part, Reject, records
from rewarm.data.split import RULE, is_validation, new_hash
from rewarm.data.tokens import Encoder, TokenizerFacts

_FIRST_SAMPLES, _SAMPLES = 64, 2  # documents compared in a worker's first part, and in each later one


@dataclass
class Piece:
    """What a worker made of a part; dicts are by split."""

    tokens: dict[str, NDArray[Any]]
    """``(n,)`` ids, EODs included."""
    documents: dict[str, int]
    """Documents that end here."""
    bytes: dict[str, int]
    """UTF-8 bytes of the text."""
    empty: int = 0
    """Records without text."""
    rejects: list[tuple[int, str]] = field(default_factory=list)
    """(line, reason) of records that could not be read."""


def make_tokenize(
    facts: TokenizerFacts, text_key: str, val_fraction: float, split_rule: int = RULE
) -> Callable[[Part], Piece]:
    """Loads the tokenizer; called once in each worker.

    Args:
        facts (TokenizerFacts): Tokenizer and encoder.
        text_key (str): Key of the text in a JSON record.
        val_fraction (float): Share of documents that go to ``val``; 0 for no split.
        split_rule (int): Rule by which they are chosen.

    Returns:
        Callable[[Part], Piece]: Turns parts into tokens, and compares the encoders on a sample as it goes.
    """
    encoder = Encoder(facts)
    splits = ('train', 'val') if val_fraction else ('',)
    eod = np.array([facts.eod_id], facts.dtype)
    checks = [_FIRST_SAMPLES]

    def tokenize(part: Part) -> Piece:
        found: dict[str, list[NDArray[Any]]] = {split: [np.zeros(0, facts.dtype)] for split in splits}
        piece = Piece({}, dict.fromkeys(splits, 0), dict.fromkeys(splits, 0))
        texts: list[str] = []
        for line, text in records(part, text_key):
            if isinstance(text, Reject):
                piece.rejects.append((line, text.reason))
                continue
            if not text and part.whole:
                piece.empty += 1
                continue
            encoded = text.encode() if val_fraction or not text.isascii() else None
            split = splits[0]
            if val_fraction and encoded is not None:
                split = splits[is_validation(part.digest or new_hash(split_rule, encoded).digest(), val_fraction)]
            found[split].append(encoder.encode(text).astype(facts.dtype))
            piece.bytes[split] += len(text if encoded is None else encoded)
            if part.last:
                found[split].append(eod)
                piece.documents[split] += 1
            texts.append(text)
        encoder.check(texts[:: max(1, len(texts) // checks[0])][: checks[0]])
        checks[0] = _SAMPLES
        piece.tokens = {split: np.concatenate(arrays) for split, arrays in found.items()}
        return piece

    return tokenize

"""The demo's text and tokenizer, made from the standard library: old data is code, new data is prose about it.

Old data is code without docstrings and comments; new data is docstrings and the topics of ``help()``: a strong shift.
Writes into one folder: ``old.jsonl`` (upstream), ``old-unseen.jsonl`` (more of the same, for the same-data control),
``old-val.jsonl``, ``new.jsonl``, ``new-val.jsonl`` (one ``{"text", "meta"}`` a line) and ``tokenizer.json``.
The same Python gives the same bytes every time.
"""

import json
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rewarm.config.errors import UserError
from rewarm.demo.stdlib import OFTEN_LEFT_OUT, Document, read_stdlib

__all__ = ['build', 'train_tokenizer']

VOCAB_SIZE = 2048
VAL_CHARACTERS = 110_000  # of each validation set: about 36,000 tokens, evaluated in about a second
UPSTREAM_TOKENS = 1_030_000  # 1,000 batches of 1,024 tokens and a little: no window is read twice
STAGE_TOKENS = 798_720  # 780 batches: what the second stage reads of new (or unseen old) text
LEAST_TOKENS = 0.45  # of STAGE_TOKENS; with less the second stage would be several passes over the same text


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
        UserError: If there is too little for the demo to mean anything.
    """
    missing = [name for name in OFTEN_LEFT_OUT if not (root / name).is_dir()]
    without = f' (no {", ".join(missing)} in {root})' if missing else ''
    least = {'old': UPSTREAM_TOKENS, 'old-unseen': LEAST_TOKENS * STAGE_TOKENS, 'new': LEAST_TOKENS * STAGE_TOKENS}
    for name, needed in least.items():
        if tokens[name] < needed:
            raise UserError(
                f'the standard library of this Python holds too little text for the demo: {tokens[name]:,} tokens of {name} data, '
                f'and at least {needed:,.0f} are needed{without}. Install rewarm into the environment of a complete Python; '
                'in a checkout: make demo PYTHON=/path/to/a/complete/python3'
            )
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
        UserError: If the library holds too little text.
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

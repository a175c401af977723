"""Whatever an input is sorted by, its validation share is what was asked; work of the first rule keeps that rule."""

import hashlib
import random

import pytest
import xxhash

from rewarm.data.split import RULE, is_validation, new_hash, rule_in_words, rule_of, share_in_words, split_warning

FRACTION = 0.02
TEXTS = [f'{random.Random(i).random()} a document with {i} words' * (1 + i % 7) for i in range(20_000)]

ORDERS = {
    'sha1': lambda text: hashlib.sha1(text).digest(),
    'md5': lambda text: hashlib.md5(text).digest(),
    'sha256': lambda text: hashlib.sha256(text).digest(),
    'blake2b': lambda text: hashlib.blake2b(text).digest(),
    'xxh32': xxhash.xxh32_digest,
    'xxh64': xxhash.xxh64_digest,
    'xxh64 from the right': lambda text: xxhash.xxh64_digest(text)[::-1],
    'xxh3': xxhash.xxh3_64_digest,
    'xxh3 of another seed': lambda text: xxhash.xxh3_64_digest(text, seed=1),
    'xxh128': xxhash.xxh3_128_digest,
    'its letters': lambda text: text,
    'its length': len,
}


@pytest.mark.parametrize('order', ORDERS)
def test_the_head_of_a_sorted_corpus_has_the_share_of_all(order):
    head = sorted((text.encode() for text in TEXTS), key=ORDERS[order])[:2_000]
    chosen = sum(is_validation(new_hash(RULE, text).digest(), FRACTION) for text in head)
    assert 15 <= chosen <= 75, (
        chosen
    )  # 40 are expected, with a deviation of 6.3; the first rule gives all 400 for SHA-1


def test_a_text_that_is_hashed_in_pieces_is_chosen_as_the_whole():
    for rule in (1, 2):
        pieces = new_hash(rule)
        for piece in (b'one ', b'', b'document'):
            pieces.update(piece)
        assert pieces.digest() == new_hash(rule, b'one document').digest()


@pytest.mark.parametrize(
    ('documents', 'chosen', 'fraction', 'far'),
    [
        (1_000, 391, 0.02, True),
        (1_000, 24, 0.02, False),
        (1_000, 0, 0.02, True),  # one in 6 * 10^8
        (500, 0, 0.02, False),  # one in 24,000
        (3, 2, 0.02, False),
        (1, 1, 0.001, False),
        (100, 2, 0.001, False),
        (10**7, 204_000, 0.02, False),  # no chance, and no harm
        (10**7, 250_000, 0.02, True),
        (50, 50, 0.5, True),
        (50, 30, 0.5, False),
        (0, 0, 0.5, False),
    ],
)
def test_only_what_chance_does_not_explain_is_warned_of(documents, chosen, fraction, far):
    assert (split_warning(documents, chosen, fraction, RULE) is not None) == far


def test_the_warning_says_both_shares_and_why():
    assert split_warning(1_000, 391, 0.02, 2).startswith('val holds 39.1 % of the documents, and 2.0 % was asked for')
    assert 'deduplicate' in split_warning(1_000, 391, 0.02, 2)
    assert 'SHA-1' in split_warning(1_000, 391, 0.02, 1)


def test_shares_are_said_in_percent():
    assert [share_in_words(share) for share in (0.02, 0.4567, 0.00042, 0.0, 1.0)] == [
        '2.0 %',
        '45.7 %',
        '0.042 %',
        '0.0 %',
        '100.0 %',
    ]


def test_a_card_without_a_rule_is_of_the_first():
    assert [rule_of(settings) for settings in ({}, {'split_rule': 2}, {'split_rule': 'x'})] == [1, 2, 0]
    assert rule_in_words('', 0.0, RULE) is None
    assert 'SHA-1' in rule_in_words('val', 0.1, 1)
    assert 'XXH3-64 with seed 0x72657761726d3032' in rule_in_words('val', 0.1, 2)

from __future__ import annotations

import pytest

from rewarm.report.stories import set_label


@pytest.mark.parametrize(
    ('name', 'words', 'label'),
    [
        ('law', 'old', 'law (old)'),
        ('law', 'old, replayed', 'law (old, replayed)'),
        ('old', 'old', 'old'),
        ('old', 'old, replayed', 'old (replayed)'),
        ('old', 'new', 'old (new)'),
        ('new', 'new', 'new'),
        ('news', 'new', 'news (new)'),
    ],
)
def test_a_label_says_nothing_twice(name, words, label):
    assert set_label(name, words) == label

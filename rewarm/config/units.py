"""Large numbers as people read them."""

__all__ = ['count_in_words', 'size_in_words']


def count_in_words(number: int) -> str:
    """A count to four digits, such as ``296.9B``."""
    for size, letter in ((10**12, 'T'), (10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
        if number >= size:
            return f'{number / size:.4g}{letter}'
    return str(number)


def size_in_words(number: int) -> str:
    """A number of bytes to three digits, such as ``4.86 GB``."""
    for size, unit in ((10**12, 'TB'), (10**9, 'GB'), (10**6, 'MB')):
        if number >= size:
            return f'{number / size:.3g} {unit}'
    return f'{number:,} bytes'

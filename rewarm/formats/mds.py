"""A shard's bytes: the count of its samples, where each begins, a header in JSON, and the samples one after the other.

Streaming reads a sample by seeking to where the shard says it begins, and takes what is there. So a shard is looked
through once before that: what is not laid out as its index says is damage, named with the shard.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from rewarm.config.errors import DamagedFile
from rewarm.formats.shards import Encoding

__all__ = ['problem_of_tokens', 'read_blocks']

CHUNK_BYTES = 8 << 20
"""Read at once: a shard of gigabytes is looked through in little memory."""

# By the byte in which a sample says it; Streaming knows floats as well.
_TOKEN_TYPES = {8: 'u1', 9: 'i1', 16: '<u2', 17: '<i2', 32: '<u4', 33: '<i4', 64: '<u8', 65: '<i8'}
_LENGTH_TYPES = ('u1', '<u2', '<u4', '<u8')


def read_blocks(file: BinaryIO, samples: int, encoding: Encoding, where: object) -> Iterator[NDArray[Any]]:
    """Reads all tokens of a shard.

    Args:
        file (BinaryIO): The shard, not packed.
        samples (int): Samples that it must have.
        encoding (Encoding): How their tokens are laid down.
        where (object): The shard, for messages.

    Yields:
        NDArray[Any]: ``(samples, tokens)`` of integers: the next samples, all of one length.

    Raises:
        DamagedFile: If the shard is not laid out so.
    """
    starts: NDArray[np.int64] = _starts(file, samples, encoding, where)
    first = 0
    while first < samples:
        end = int((starts <= starts[first] + CHUNK_BYTES).sum()) - 1
        end = min(samples, max(end, first + 1))
        file.seek(int(starts[first]))
        data = np.frombuffer(file.read(int(starts[end] - starts[first])), np.uint8)
        if len(data) != starts[end] - starts[first]:
            _refuse(where, 'it is shorter than it was a moment ago')
        sizes = np.diff(starts[first : end + 1])
        if (sizes == sizes[0]).all() and (block := _block(data.reshape(end - first, -1), encoding, where)) is not None:
            yield block
        else:
            for begin, size in zip(starts[first:end] - starts[first], sizes):
                block = _block(data[begin : begin + size].reshape(1, -1), encoding, where)
                assert block is not None  # one sample is like itself
                yield block
        first = end


def problem_of_tokens(blocks: NDArray[Any], vocab_size: int | None) -> str | None:
    """What is wrong with token ids, in words; ``None`` if all are those of a vocabulary.

    Args:
        blocks (NDArray[Any]): ``(samples, tokens)`` ids.
        vocab_size (int | None): Ids there are; if not known, only ids below 0 are wrong.
    """
    lowest, highest = int(blocks.min()), int(blocks.max())
    if lowest < 0:
        return f'it holds the token id {lowest}'
    if vocab_size is not None and highest >= vocab_size:
        return f'it holds the token id {highest}, but the vocabulary has {vocab_size} ids, 0 to {vocab_size - 1}'
    return None


def _refuse(where: object, what: str) -> NoReturn:
    raise DamagedFile(where, what=what)


def _starts(file: BinaryIO, samples: int, encoding: Encoding, where: object) -> NDArray[np.int64]:
    """Where each sample begins and, last, where the last one ends; checked against the file's size."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(4 * (samples + 2))
    count = int(np.frombuffer(head, '<u4', 1)[0]) if len(head) >= 4 else 0
    if count != samples:
        _refuse(where, f'it holds {count} samples, the index says {samples}')
    if len(head) < 4 * (samples + 2):
        _refuse(where, 'it ends before it has said where its samples begin')
    starts = np.frombuffer(head, '<u4', offset=4).astype(np.int64)
    sizes = np.diff(starts)
    if starts[0] < len(head) or starts[-1] != size or (sizes <= 0).any():
        _refuse(where, 'where it says that its samples begin and end is not inside it, or not in order')
    if encoding.sample_bytes and (sizes != encoding.sample_bytes).any():
        _refuse(where, f'a sample has another size than the {encoding.sample_bytes} bytes that the index says')
    return starts


def _block(rows: NDArray[np.uint8], encoding: Encoding, where: object) -> NDArray[Any] | None:
    """Tokens of samples of one size, ``(samples, bytes)``; None if these say different things of themselves."""
    head, dtype = _layout(rows[0], encoding, where)
    if head and (rows[:, :head] != rows[0, :head]).any():
        return None
    return np.ascontiguousarray(rows[:, head:]).view(dtype)


def _layout(sample: NDArray[np.uint8], encoding: Encoding, where: object) -> tuple[int, np.dtype[Any]]:
    """Bytes before a sample's tokens, and the type of these."""
    if encoding.dtype and encoding.length:
        return 0, np.dtype(encoding.dtype).newbyteorder('<')
    head = 4
    if len(sample) < head or int(sample[:4].view('<u4')[0]) != len(sample) - head:
        _refuse(where, 'a sample has another size than it says')
    if encoding.kind == 'bytes':
        dtype, length = np.dtype('<i8'), None
    else:
        data = sample.tobytes()
        if encoding.dtype:
            dtype = np.dtype(encoding.dtype).newbyteorder('<')
        else:
            code = data[head] if len(data) > head else None
            if code not in _TOKEN_TYPES:
                _refuse(where, f'the tokens of a sample are of a type that is no integer ({code})')
            dtype, head = np.dtype(_TOKEN_TYPES[int(code)]), head + 1
        code = data[head] if len(data) > head else 0
        kind = np.dtype(_LENGTH_TYPES[code % 4])
        if code >> 2 != 1 or len(data) < head + 1 + kind.itemsize:
            _refuse(where, f'the tokens of a sample are in {code >> 2} dimensions, not one')
        length = int(np.frombuffer(data, kind, 1, head + 1)[0])
        head += 1 + kind.itemsize
    size = len(sample) - head
    if not size or size % dtype.itemsize or (length is not None and length != size // dtype.itemsize):
        _refuse(where, f'a sample says that it has {length} tokens, and has {size} bytes of them')
    return head, dtype

"""Files to parts: each file is streamed once, hashed, decompressed, and cut into parts of a fixed size.

This half of reading is sequential and cheap (hundreds of MB/s), and the same for any number of workers.
"""

import codecs
import contextlib
import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import UserError
from rewarm.data.columns import column_parts
from rewarm.data.documents import BOM, MAX_RECORD_BYTES, TOO_LONG, Part
from rewarm.data.sources import Source
from rewarm.data.split import RULE, new_hash

PART_BYTES = 4 << 20
"""Uncompressed bytes of a part: large beside the cost of handing it to a worker, small beside the memory bound."""

SAFE_CUT = re.compile(r'(?<=[!-~])\n(?=[0-9A-Za-z])')
"""Where a long text may be cut (behind the match) without changing its tokens.

It is a line end between a printable ASCII character and a letter or digit. GPT-2's and GPT-4's splitting rules both
put a boundary there, whatever follows.
"""

_BLOCK_BYTES = 1 << 20

_ZSTD_READ_BYTES = 2 << 10
"""Unpacked at once: four bytes can stand for a block of 128 KiB, so these for 64 MiB at most."""

_ZSTD_WINDOW_BYTES = 1 << 27
"""What zstd itself gives a file that asks for more memory than it was told to allow (``--long`` above 27)."""

_SAFE_CUT_BYTES = re.compile(SAFE_CUT.pattern.encode())


def read_parts(
    source: Source,
    index: int,
    *,
    text_key: str,
    work: Path,
    on_read: Callable[[int], None],
    on_hash: Callable[[str], None],
    part_bytes: int = PART_BYTES,
    split_rule: int = RULE,
) -> Iterator[Part]:
    """Streams a file as parts; after the last one, `on_hash` gets the SHA-256 of the file's bytes.

    Args:
        source (Source): The file.
        index (int): Its index, which the parts carry.
        text_key (str): The column of a columnar file that holds the text.
        work (Path): Folder for a columnar file's download.
        on_read (Callable[[int], None]): Told the bytes of the file read since the last call.
        on_hash (Callable[[str], None]): Told the hash in hex, once.
        part_bytes (int): Size of a part in uncompressed bytes.
        split_rule (int): Rule whose hash the pieces of a long text carry.

    Yields:
        Part: In the order of the file.

    Raises:
        UserError: If the file cannot be read or decompressed to its end.
    """
    with errors_of(source):
        digest = hashlib.sha256()
        with source.open() as file:
            blocks = _counted(file, digest, on_read)
            if source.kind in ('parquet', 'arrow'):
                # Read from both ends, so it is hashed (and, from a bucket, fetched) first.
                with _local_copy(source, blocks, work) as path:
                    yield from column_parts(path, source, index, text_key, part_bytes)
            else:
                data = decompressed(blocks, source)
                if source.kind == 'jsonl':
                    yield from _cut_lines(data, source, index, part_bytes)
                else:
                    yield from _cut_text(data, source, index, part_bytes, split_rule)
        on_hash(digest.hexdigest())


@contextlib.contextmanager
def errors_of(source: Source) -> Iterator[None]:
    """Says what is wrong with a file that cannot be read or decompressed within the ``with`` block.

    Raises:
        UserError: With the file's name, the reason and, where there is one, the way out.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        if 'too much memory' in str(error):
            raise UserError(
                f'{source.path}: to unpack it takes more memory than {_ZSTD_WINDOW_BYTES >> 20} MiB (zstd --long). '
                'Unpack it first: zstd -d --long=31 FILE'
            ) from None
        raise UserError(f'{source.path}: cannot be read to its end ({error})') from error


@contextlib.contextmanager
def _local_copy(source: Source, blocks: Iterator[bytes], work: Path) -> Iterator[Path]:
    if not is_bucket(source.path):
        for _ in blocks:
            pass
        yield Path(source.path)
        return
    path = work / 'download'
    try:
        with path.open('wb') as copy:
            copy.writelines(blocks)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _counted(file: BinaryIO, digest: Any, on_read: Callable[[int], None]) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        on_read(len(block))
        yield block


def decompressed(blocks: Iterator[bytes], source: Source, block_bytes: int | None = None) -> Iterator[bytes]:
    """Unpacks a file.

    Args:
        blocks (Iterator[bytes]): The file's bytes.
        source (Source): How it is compressed.
        block_bytes (int | None): Size of the blocks that come out of a compressed one; None for that of the parts' cuts.

    Returns:
        Iterator[bytes]: What is in it.
    """
    if source.compression is None:
        return blocks
    stream = _Blocks(blocks)
    unpacked = _zstd_blocks(stream) if source.compression == 'zstd' else _gzip_blocks(stream)
    return _of_one_size(unpacked, block_bytes or _BLOCK_BYTES)


def _of_one_size(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Makes the cuts, and with them what a restart skips, a matter of the content and not of a library's buffers."""
    held = bytearray()
    for block in blocks:
        held += block
        if len(held) >= size:
            whole = len(held) // size * size
            for start in range(0, whole, size):
                yield bytes(held[start : start + size])
            del held[:whole]
    if held:
        yield bytes(held)


class _Blocks:
    """An iterator of blocks as a file that is read in small pieces."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b''

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._blocks, b'')
        head = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(head) :]
        return head


def _gzip_blocks(stream: _Blocks) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=stream, mode='rb') as file:  # type: ignore[arg-type]
        while block := file.read1(_BLOCK_BYTES):
            yield block


def _zstd_blocks(stream: _Blocks) -> Iterator[bytes]:
    # Objects, one a frame, because zstandard's stream_reader takes a truncated file for a short one.
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = None
    while data := stream.read(_ZSTD_READ_BYTES):
        while data:
            frame = frame or context.decompressobj()
            yield frame.decompress(data)
            data, frame = (frame.unused_data, None) if frame.eof else (b'', frame)
    if frame is not None:
        raise EOFError('the compressed stream is truncated')


def _cut_lines(blocks: Iterator[bytes], source: Source, index: int, part_bytes: int) -> Iterator[Part]:
    """Cuts at line ends; a line above `MAX_RECORD_BYTES` is skipped without being held."""
    pending: list[bytes] = []
    size, line, count, skipping = 0, 1, 0, False
    rejects: list[tuple[int, str]] = []
    for arrived in blocks:
        block = arrived
        if skipping:
            end = block.find(b'\n') + 1
            if not end:
                continue
            block, skipping, line = block[end:], False, line + 1
        pending.append(block)
        size += len(block)
        if size < part_bytes:
            continue
        end = block.rfind(b'\n') + 1
        if end:
            lines = b''.join((*pending[:-1], block[:end]))
            yield Part(source=index, index=count, kind=source.kind, first_line=line, lines=lines, rejects=rejects)
            line, count, rejects = line + lines.count(b'\n'), count + 1, []
            pending, size = [block[end:]], len(block) - end
        elif size > MAX_RECORD_BYTES + part_bytes:
            whole = b''.join(pending)
            end = whole.rfind(b'\n') + 1  # whole lines before the long one
            if end:
                yield Part(
                    source=index, index=count, kind=source.kind, first_line=line, lines=whole[:end], rejects=rejects
                )
                line, count, rejects = line + whole.count(b'\n', 0, end), count + 1, []
            rejects.append((line, TOO_LONG.reason))
            pending, size, skipping = [], 0, True
    lines = b''.join(pending)
    if lines or rejects:
        yield Part(source=index, index=count, kind=source.kind, first_line=line, lines=lines, rejects=rejects)


def _cut_text(blocks: Iterator[bytes], source: Source, index: int, part_bytes: int, split_rule: int) -> Iterator[Part]:
    """One file is one document. A long one is cut where that changes no token, and gets its EOD at its end."""
    data, count, digest = b'', 0, None
    for block in blocks:
        data += block
        while len(data) >= 2 * part_bytes:
            if count == 0:
                data = data.removeprefix(BOM)
                digest = _text_digest(source, split_rule)
                if digest is None:
                    yield Part(source=index, index=0, kind='txt', first_line=1, rejects=[(1, 'invalid UTF-8')])
                    for _ in blocks:  # to its end, for the hash
                        pass
                    return
            cut = _text_cut(data, part_bytes)
            piece = Part(source=index, index=count, kind='txt', first_line=1, lines=data[:cut], whole=False, last=False)
            piece.digest = digest
            yield piece
            data, count = data[cut:], count + 1
    if count or data:
        data = data if count else data.removeprefix(BOM)
        yield Part(
            source=index, index=count, kind=source.kind, first_line=1, lines=data, whole=not count, digest=digest
        )


def _text_cut(data: bytes, part_bytes: int) -> int:
    if match := _SAFE_CUT_BYTES.search(data, part_bytes):
        return match.end()
    if end := data.find(b'\n', part_bytes) + 1:
        return end
    cut = part_bytes
    while data[cut] & 0xC0 == 0x80:  # not inside a character
        cut -= 1
    return cut


def _text_digest(source: Source, split_rule: int) -> bytes | None:
    """Hash of a whole text file's text, or None if it is not UTF-8."""
    decoder, digest, first = codecs.getincrementaldecoder('utf-8')(), new_hash(split_rule), True
    with source.open() as file:
        for block in decompressed(iter(lambda: file.read(_BLOCK_BYTES), b''), source):
            data = block.removeprefix(BOM) if first else block
            first = False
            digest.update(data)
            try:
                decoder.decode(data)
            except UnicodeDecodeError:
                return None
    try:
        decoder.decode(b'', final=True)
    except UnicodeDecodeError:
        return None
    return digest.digest()

"""A packed shard is never unpacked beyond the size that its index gives."""

import io

import pytest
import zstandard

from rewarm.config.errors import DamagedFile
from rewarm.formats.packed import unpack

RAW = b'tokens ' * 5000


class Counting(io.BytesIO):
    """Counts what is read, and what is written."""

    moved = 0

    def read(self, size=-1):
        data = super().read(size)
        self.moved += len(data)
        return data

    def write(self, data):
        self.moved += len(data)
        return super().write(data)


def stream(data):
    """A frame that does not say how much it unpacks to."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize('pack', [zstandard.ZstdCompressor(level=19).compress, stream])
def test_what_is_packed_comes_out(pack):
    out = io.BytesIO()
    unpack(io.BytesIO(pack(RAW)), out, len(RAW), 'shard')
    assert out.getvalue() == RAW


def test_a_frame_that_says_another_size_is_refused_before_it_is_unpacked():
    packed, out = Counting(zstandard.ZstdCompressor().compress(bytes(64 << 20))), Counting()
    with pytest.raises(DamagedFile, match='it unpacks to 67,108,864 bytes, the index says 1,000'):
        unpack(packed, out, 1000, 'shard')
    assert packed.moved <= 18
    assert out.moved == 0


@pytest.mark.parametrize('extra', [1, 64 << 20])
def test_one_that_says_nothing_is_unpacked_to_its_bound(extra):
    out = Counting()
    with pytest.raises(DamagedFile, match='more than the 35,000 bytes'):
        unpack(io.BytesIO(stream(RAW + bytes(extra))), out, len(RAW), 'shard')
    assert out.moved == len(RAW) + 1


@pytest.mark.parametrize('data', [b'', b'x', b'no frame at all' * 5, stream(RAW)[:-20], stream(RAW[:-1])])
def test_what_is_cut_or_no_frame_is_damage(data):
    with pytest.raises(DamagedFile, match=r'cannot be unpacked|it unpacks to'):
        unpack(io.BytesIO(data), io.BytesIO(), len(RAW), 'shard')

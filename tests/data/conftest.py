"""A small real tokenizer, and the real corpora where they are."""

import json
import lzma
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')


@pytest.fixture
def short_temporary_folder(monkeypatch):
    """A temporary folder of the test's own, short enough for the sockets of loader workers, which pytest's is not."""
    with tempfile.TemporaryDirectory(dir='/tmp') as folder:
        monkeypatch.setenv('TMPDIR', folder)
        monkeypatch.setattr('tempfile.tempdir', folder)
        yield Path(folder)


@pytest.fixture(scope='session')
def tokenizer_path(tmp_path_factory) -> Path:
    """A byte-level BPE of GPT-NeoX's kind: NFC, 1,000 ids, EOD, and runs of spaces as added tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=990,
        special_tokens=['<|endoftext|>', '<|padding|>'],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        Path(json.__file__).read_text(),
        Path(lzma.__file__).read_text(),
        'Grüße aus Köln, äöüß éèê',
        '漢字かな 한국어',
    ] * 3
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(' ' * n, normalized=True) for n in (8, 4, 2)])
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope='session')
def real_data() -> Path:
    """The folder of real corpora, or a skip that says how to get one."""
    folder = Path(os.environ.get('REWARM_DATA', Path(__file__).parents[2] / '../shared/data'))
    if not (folder / 'neox-20b-tokenizer.json.xz').exists():
        pytest.skip(f'no real corpora in {folder} (set REWARM_DATA)')
    return folder


@pytest.fixture(scope='session')
def neox_path(real_data, tmp_path_factory) -> Path:
    """Pythia's tokenizer."""
    path = tmp_path_factory.mktemp('neox') / 'tokenizer.json'
    path.write_bytes(lzma.open(real_data / 'neox-20b-tokenizer.json.xz').read())
    return path

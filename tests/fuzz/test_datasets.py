"""Datasets of any kind: the samples that were written, or an error in words before they reach a batch."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tokenizers
import torch

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.schedules import ConstantSchedule
from rewarm.config.schema import (
    DataConfig,
    EvalSetConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    StreamConfig,
    TrainConfig,
)
from rewarm.data.shards import Packer, ShardFormat, write_index
from rewarm.data.stream import build_eval_loader, release
from rewarm.data.verify import verify_dataset
from rewarm.formats.tokenizer import tokenizer_hash
from tests.fuzz.inputs import run_inputs
from tests.fuzz.mutations import HOSTILE, change_bytes, change_json, replace_file

SEQ, VOCABULARY, SAMPLES = 16, 50, 40


@pytest.fixture
def tokenizer(tmp_path):
    words = {f'w{number}': number for number in range(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))
    made.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path / 'tokenizer.json'


def write_dataset(folder, tokens, tokenizer, compression):
    folder.mkdir()
    entries = []
    packer = Packer(ShardFormat(SEQ, 'uint16', compression, 700), folder, entries.append)
    packer.add(tokens)
    dropped = packer.close()
    write_index(folder, iter(entries))
    card = {
        'version': 1,
        'tokenizer_hash': tokenizer_hash(tokenizer),
        'vocab_size': VOCABULARY,
        'eod_id': 0,
        'seq_len': SEQ,
        'dtype': 'uint16',
        'documents': 1,
        'tokens': SAMPLES * SEQ + 1 + dropped,
        'bytes': 4000,
        'samples': SAMPLES,
        'tokens_dropped': dropped,
        'converter': 'test',
    }
    (folder / 'dataset_card.json').write_text(json.dumps(card))


def run_config(folder, tokenizer):
    stage = StageConfig(
        name='stage',
        max_duration=Duration(10, 'ba'),
        train=TrainConfig(streams=(StreamConfig(name='old', local=str(folder)),)),
        schedule=ConstantSchedule(name='constant', lr=1e-3),
    )
    return RunConfig(
        run_name='test',
        run_folder=str(folder / 'run'),
        max_seq_len=SEQ,
        global_train_batch_size=8,
        device_train_microbatch_size=4,
        data=DataConfig(num_workers=0, shuffle_block_size=64),
        tokenizer=str(tokenizer),
        model=ModelConfig(name='pythia-14m', init_from='scratch'),
        stages=(stage,),
    )


def change_index(rng, data):
    """An index with one place changed, mostly in what names and counts."""
    index = json.loads(data)
    if rng.random() < 0.5:
        return change_json(rng, data)
    entry = rng.choice(index['shards'])
    part = rng.choice([entry, entry['raw_data'], entry.get('zip_data') or entry['raw_data']])
    part[rng.choice(list(part))] = rng.choice(HOSTILE)
    return json.dumps(index).encode()


def damage_shard(rng, folder):
    """Changes a shard, and mostly makes the index agree with it; returns whether it does."""
    index = json.loads((folder / 'index.json').read_text())
    entry = rng.choice(index['shards'])
    info = entry['zip_data'] or entry['raw_data']
    path = folder / info['basename']
    data = path.read_bytes()
    changed = bytearray(data)
    if rng.random() < 0.5:
        at = rng.randrange(min(len(data), 300))
        changed[at] ^= 1 << rng.randrange(8)
    else:
        changed = bytearray(change_bytes(rng, data))
    path.write_bytes(changed)
    if rng.random() < 0.3:
        return False
    info['bytes'], info['hashes'] = len(changed), {'sha1': hashlib.sha1(changed).hexdigest()}
    (folder / 'index.json').write_text(json.dumps(index))
    return True


def test_a_changed_dataset_gives_its_samples_or_is_refused(tmp_path, tokenizer, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, SAMPLES * SEQ + 1).astype(np.uint16)
    for name, compression in (('raw', None), ('packed', 'zstd')):
        write_dataset(tmp_path / name, tokens, tokenizer, compression)
    right = np.stack([tokens[start : start + SEQ] for start in range(0, SAMPLES * SEQ, SEQ)])
    folder = tmp_path / 'now'
    config = run_config(folder, tokenizer)

    def attempt(rng):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / rng.choice(('raw', 'packed')), folder)
        what, rehashed = rng.random(), False
        if what < 0.55:
            path = folder / 'index.json'
            path.write_bytes(rng.choice((change_index, change_index, change_bytes))(rng, path.read_bytes()))
        elif what < 0.7:
            path = folder / 'dataset_card.json'
            path.write_bytes(rng.choice((change_json, change_bytes))(rng, path.read_bytes()))
        elif what < 0.78:
            replace_file(rng, rng.choice(sorted(folder.iterdir())))
        else:
            rehashed = damage_shard(rng, folder)
        try:
            verify_dataset(folder)
        except UserError:
            pass  # it says so in words; training is to find it by itself
        data = None
        try:
            data = build_eval_loader(EvalSetConfig(name='old', role='upstream', local=str(folder)), config=config)
            batches = list(data.spec.dataloader)
        except UserError:
            return
        finally:
            if data is not None:
                release([data.dataset])
        ids = np.concatenate([batch['sample_ids'].numpy() for batch in batches])
        read = np.concatenate([batch['input_ids'].numpy() for batch in batches])[ids >= 0]
        if rehashed:  # somebody's own data, but no id that the model lacks
            assert read.shape == right.shape
            assert 0 <= read.min() <= read.max() < VOCABULARY
        else:
            assert np.array_equal(read, right)

    run_inputs(attempt, 250)

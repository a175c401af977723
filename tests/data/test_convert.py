"""Text to datasets: the same bytes for any workers and after any kill, whole or not there, and readable by Streaming."""

import functools
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard

from rewarm.buckets import s3
from rewarm.config.errors import UserError
from rewarm.data import convert as convert_module
from rewarm.data import pool
from rewarm.data.convert import convert
from rewarm.data.job import Job
from rewarm.data.pool import Workers
from rewarm.data.staging import Staging
from rewarm.data.verify import verify_dataset
from rewarm.formats.card import DatasetCard, read_card
from rewarm.formats.conversion import Identity
from tests.buckets.servers import S3Server

REPOSITORY = Path(__file__).parents[2]
WORDS = 'warm rate stage token shard Größe naïve 漢字 e\u0301 print(x) 3.14 <|endoftext|> \u0c15\u0c3c'.split()


def texts(count, seed=0):
    rng = random.Random(seed)
    return [' '.join(rng.choices(WORDS, k=rng.randint(1, 120))) + '\n' * rng.randint(0, 2) for _ in range(count)]


def write_inputs(folder, count=400):
    """Files of every kind of compression, one of them larger than the others."""
    folder.mkdir(parents=True)
    for name, n, seed, pack in (
        ('a.jsonl', 5 * count, 1, bytes),
        ('b.jsonl.gz', count, 2, gzip.compress),
        ('c.jsonl.zst', count, 3, zstandard.ZstdCompressor().compress),
        ('d.jsonl', 3, 4, bytes),
    ):
        lines = (json.dumps({'text': text}, ensure_ascii=False) + '\n' for text in texts(n, seed))
        (folder / name).write_bytes(pack(''.join(lines).encode()))
    (folder / 'e.txt').write_text('\n'.join(texts(count, 5)), encoding='utf-8')
    (folder / 'empty.jsonl').write_bytes(b'')
    return folder


@pytest.fixture(scope='session')
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp('inputs') / 'in')


@pytest.fixture
def run(tokenizer_path, capsys):
    def call(source, out, **kwargs):
        options = {'seq_len': 64, 'workers': 1, 'shard_bytes': 20_000, 'part_bytes': 30_000, 'progress': False}
        return convert([str(source)], str(out), tokenizer=str(tokenizer_path), **{**options, **kwargs})

    return call


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file()
    }


def stored_tokens(folder):
    """The token stream of a dataset, read without any of our code."""
    blocks = []
    for entry in json.loads((folder / 'index.json').read_text())['shards']:
        if entry['zip_data']:
            raw = zstandard.decompress((folder / entry['zip_data']['basename']).read_bytes())
        else:
            raw = (folder / entry['raw_data']['basename']).read_bytes()
        begin = int(np.frombuffer(raw, '<u4', 1, 4)[0])
        blocks.append(np.frombuffer(raw, '<u2', offset=begin).reshape(entry['samples'], -1))
    stream = np.concatenate(blocks)
    assert np.array_equal(stream[1:, 0], stream[:-1, -1])
    return np.concatenate((stream[:1, 0], stream[:, 1:].reshape(-1)))


def test_tokens_are_what_the_definition_gives_in_the_order_of_the_files(run, tmp_path, tokenizer_path):
    import tokenizers

    written = texts(300)
    (tmp_path / 'in').mkdir()
    for name, part in (('a', written[:200]), ('b', written[200:])):
        lines = ''.join(json.dumps({'text': t}) + '\n' for t in part)
        (tmp_path / 'in' / f'{name}.jsonl').write_text(lines)
    done = run(tmp_path / 'in', tmp_path / 'out', workers=2)
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    tokenizer.encode_special_tokens = True
    expected = [i for t in written for i in (*tokenizer.encode(t, add_special_tokens=False).ids, 0)]
    card = done.cards['']
    stream = stored_tokens(tmp_path / 'out')
    assert stream.tolist() == expected[: len(stream)]
    assert (card.tokens, card.tokens_dropped) == (len(expected), len(expected) - len(stream))
    assert card.tokens_dropped <= 64
    assert (card.documents, card.bytes) == (300, sum(len(t.encode()) for t in written))
    assert card.samples * 64 + 1 == len(stream)
    assert [s.name for s in card.sources] == ['in/a.jsonl', 'in/b.jsonl']
    assert card.sources[0].sha256 == hashlib.sha256((tmp_path / 'in' / 'a.jsonl').read_bytes()).hexdigest()
    assert read_card(tmp_path / 'out') == card
    assert verify_dataset(tmp_path / 'out') == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in', 'out']  # no staging is left


@pytest.mark.parametrize('val_fraction', [0.0, 0.1])
def test_any_number_of_workers_and_any_cut_gives_the_same_bytes(run, inputs, tmp_path, val_fraction):
    one = run(inputs, tmp_path / '1', workers=1, val_fraction=val_fraction)
    for workers, part_bytes, commit in ((2, 30_000, 0.0), (3, 7_000, 5.0)):
        out = tmp_path / str(workers)
        run(inputs, out, workers=workers, val_fraction=val_fraction, part_bytes=part_bytes, commit_seconds=commit)
        assert hashes(out) == hashes(tmp_path / '1')
    assert len(hashes(tmp_path / '1')) > 10
    assert sum(card.documents for card in one.cards.values()) == 400 * 7 + 3 + 1


def test_both_encoders_give_the_same_bytes(run, inputs, tmp_path):
    pytest.importorskip('gigatoken')
    fast, slow = (run(inputs, tmp_path / e, encoder=e) for e in ('gigatoken', 'tokenizers'))
    assert fast.cards[''].encoder != slow.cards[''].encoder
    a, b = hashes(tmp_path / 'gigatoken'), hashes(tmp_path / 'tokenizers')
    assert {n for n in a if a[n] != b.get(n)} == {'dataset_card.json'}


def test_validation_documents_are_chosen_by_their_text_alone(run, inputs, tmp_path):
    run(inputs, tmp_path / 'out', val_fraction=0.1)
    chosen = sum(
        xxhash.xxh3_64_intdigest(t.encode(), seed=0x72657761726D3032) / 2**64 < 0.1
        for n, seed in ((2000, 1), (400, 2), (400, 3), (3, 4))
        for t in texts(n, seed)
    )
    train, val = (read_card(tmp_path / 'out' / split) for split in ('train', 'val'))
    assert chosen <= val.documents <= chosen + 1  # the text file is one more document
    assert train.documents + val.documents == 2804
    assert 'below 0.1' in val.split
    assert 'at or above 0.1' in train.split
    assert (train.settings['split_rule'], val.settings['split_rule']) == (2, 2)


def test_streaming_reads_what_was_written(run, inputs, tmp_path):
    from streaming import StreamingDataset

    run(inputs, tmp_path / 'out', compression='zstd')
    expected = stored_tokens(tmp_path / 'out')
    dataset = StreamingDataset(
        remote=str(tmp_path / 'out'), local=str(tmp_path / 'cache'), shuffle=False, batch_size=1, validate_hash='sha1'
    )
    read = np.stack([dataset[i]['tokens'] for i in range(len(dataset))])
    assert read.dtype == np.uint16
    assert read.shape == (read_card(tmp_path / 'out').samples, 65)
    assert np.array_equal(read[:, 1:].reshape(-1), expected[1:])


# --- killed and started again


def command(inputs, out, tokenizer_path, **kwargs):
    options = {
        'tokenizer': str(tokenizer_path), 'seq_len': 64, 'workers': 2, 'shard_bytes': 20_000, 'part_bytes': 10_000,
        'progress': False, 'val_fraction': 0.1, 'commit_seconds': 0.0, **kwargs,
    }  # fmt: skip
    code = f'from rewarm.data.convert import convert\nconvert([{str(inputs)!r}], {str(out)!r}, **{options!r})'
    return [sys.executable, '-c', code]


def start(*args, **kwargs):
    return subprocess.Popen(
        command(*args, **kwargs), cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL, env=os.environ
    )


def children_of(pid):
    return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize('kill', ['the group', 'the parent alone'])
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(inputs, tmp_path, tokenizer_path, kill):
    whole = start(inputs, tmp_path / 'whole', tokenizer_path)
    assert whole.wait(120) == 0
    expected, out = hashes(tmp_path / 'whole'), tmp_path / 'out'
    rng, kills, seen = random.Random(0), 0, set()
    for attempt in range(60):
        process = start(inputs, out, tokenizer_path)
        # Before the first commit, then at growing progress, by what lies on disk rather than by the clock.
        commits = Path(f'{out}.staging/work/progress.json')
        before = commits.read_bytes() if commits.exists() else b''
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            now = commits.read_bytes() if commits.exists() else b''
            if attempt < 2 or (now != before and rng.random() < 0.3):
                break
            before = now
            time.sleep(0.002)
        time.sleep([0.05, 0.5][attempt] if attempt < 2 else rng.random() * 0.01)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        workers = children_of(process.pid)
        (os.killpg if kill == 'the group' else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        seen.add(commits.read_bytes() if commits.exists() else b'')
        assert not out.exists() or hashes(out) == expected  # whole or not there
        deadline = time.monotonic() + 10
        while any(Path(f'/proc/{pid}').exists() for pid in workers):  # nobody lives on without a parent
            assert time.monotonic() < deadline
            time.sleep(0.01)
    else:
        pytest.fail('never finished')
    assert kills >= 5
    assert len(seen) >= 4
    assert hashes(out) == expected
    assert not Path(f'{out}.staging').exists()


def test_a_conversion_killed_after_publishing_is_tidied_up(run, inputs, tmp_path, monkeypatch):
    from rewarm.data.staging import Staging

    def die(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, 'remove', die)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / 'out')
    assert (tmp_path / 'out.staging').exists()
    assert run(inputs, tmp_path / 'out').already_done
    assert not (tmp_path / 'out.staging').exists()


def test_a_finished_dataset_is_left_alone_and_another_is_not_overwritten(run, inputs, tmp_path):
    first = run(inputs, tmp_path / 'out')
    before = hashes(tmp_path / 'out')
    again = run(inputs, tmp_path / 'out', workers=2)
    assert again.already_done
    assert again.cards == first.cards
    with pytest.raises(UserError, match=r'already holds something else .seq_len: 64 there, 128 now'):
        run(inputs, tmp_path / 'out', seq_len=128)
    with pytest.raises(UserError, match='already holds something else'):
        run(inputs, tmp_path / 'out', val_fraction=0.1)
    with pytest.raises(UserError, match=r'already holds something else .other files'):
        run(inputs / 'a.jsonl', tmp_path / 'out')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').write_text('')
    with pytest.raises(UserError, match='already holds something else'):
        run(inputs, tmp_path / 'mine')
    assert hashes(tmp_path / 'out') == before


def interrupted(run, source, out, monkeypatch, **kwargs):
    """A conversion that stops after some commits."""
    calls = []

    def stop(*args):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return take(*args)

    take = convert_module._take
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, '_take', stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, out, commit_seconds=0.0, **kwargs)


@pytest.mark.parametrize('target', ['empty', 'nowhere'])
def test_a_link_in_place_of_the_dataset_is_refused_before_any_work(run, inputs, tmp_path, target):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / target)
    with pytest.raises(UserError, match='out: is a link'):
        run(inputs, tmp_path / 'out')
    assert not (tmp_path / 'out.staging').exists()


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda work: (work / 'progress.json').write_text('{}'), 'progress.json: damaged: progress: is missing'),
        (lambda work: (work / 'identity.json').write_text('['), 'identity.json: damaged'),
        (lambda work: (work / 'rejects.jsonl').symlink_to('/dev/null'), 'rejects.jsonl: damaged: it is a link'),
    ],
)
def test_unfinished_work_that_is_damaged_says_what_to_do(inputs, tmp_path, damage, words):
    identity = Identity(settings={}, sources=())
    Staging(tmp_path / 'staging', identity, ['']).close()
    damage(tmp_path / 'staging' / 'work')
    with pytest.raises(UserError, match=rf'{words}.*Delete {tmp_path}/staging and start again'):
        Staging(tmp_path / 'staging', identity, [''])


def test_unfinished_work_is_written_through_no_link(tmp_path):
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / 'staging').mkdir()
    (tmp_path / 'staging' / 'lock').symlink_to(tmp_path / 'mine')
    with pytest.raises(UserError, match='lock: is a link'):
        Staging(tmp_path / 'staging', Identity(settings={}, sources=()), [''])


def test_unfinished_work_is_not_mixed_with_other_settings_or_files(run, tmp_path, monkeypatch):
    inputs = write_inputs(tmp_path / 'in', 100)
    interrupted(run, inputs, tmp_path / 'out', monkeypatch, part_bytes=5000)
    with pytest.raises(UserError, match=r'unfinished conversion of something else .seq_len: 64 there, 32 now'):
        run(inputs, tmp_path / 'out', seq_len=32)
    os.utime(inputs / 'd.jsonl', (0, 0))
    with pytest.raises(UserError, match='the source files differ'):
        run(inputs, tmp_path / 'out')


def test_a_try_that_failed_begins_again_once_its_input_is_mended(run, tmp_path):
    source, said = tmp_path / 'a.jsonl', []
    good = [json.dumps({'text': text}) + '\n' for text in texts(300)]
    source.write_text(''.join([*good[:150], '{"text": 1}\n' * 150]))
    with pytest.raises(UserError, match='could not be read'):
        run(source, tmp_path / 'out', say=said.append)
    source.write_text(''.join(good))
    run(source, tmp_path / 'out', say=said.append)
    (line,) = (line for line in said if line.startswith('starting again from the beginning'))
    assert f'{tmp_path}/out.staging held a try that failed (the source files differ: a.jsonl; ' in line
    assert 'the try before ended with: 150 of 300 records' in line
    run(source, tmp_path / 'whole')
    assert hashes(tmp_path / 'out') == hashes(tmp_path / 'whole')
    assert not (tmp_path / 'out.staging').exists()


def test_a_try_that_failed_takes_other_settings_too_and_the_same_go_on(run, tmp_path):
    said = []
    (tmp_path / 'a.jsonl').write_text('{"text": "a few words"}\n{"text": 1}\n')
    for options, words in (({}, '1 of 2 records'), ({'max_rejects': 1.0}, 'less than one block of 65')):
        with pytest.raises(UserError, match=words):
            run(tmp_path / 'a.jsonl', tmp_path / 'out', say=said.append, **options)
    assert f'all files are read already, what is left is to publish {tmp_path}/out.staging' in said
    assert not any('file 2 of 1' in line for line in said)
    run(tmp_path / 'a.jsonl', tmp_path / 'out', max_rejects=1.0, seq_len=2, say=said.append)
    assert any('seq_len: 64 there, 2 now' in line for line in said)


def test_files_without_any_text_are_not_told_to_give_more(run, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": ""}\n{"text"\n')
    with pytest.raises(UserError, match=r'no text in these files: 1 records are empty, 1 could not be read'):
        run(tmp_path / 'a.jsonl', tmp_path / 'out', max_rejects=1.0)


def test_a_wrong_key_is_said_before_anything_is_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, 'read_tokenizer', None)  # which would make an encoder
    (tmp_path / 'a.jsonl').write_text('{"content": "x", "id": 1}\n' * 2)
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: no key 'text'; the record has content, id\. .*--text-key content"
    ):
        run(tmp_path, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['a.jsonl']


def test_one_conversion_reads_the_text_under_several_names(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a.jsonl').write_text(
        ''.join(json.dumps({'text': text, 'id': 1}) + '\n' for text in texts(50, 1))
    )
    pyarrow.parquet.write_table(pa.table({'id': [1] * 50, 'content': texts(50, 2)}), tmp_path / 'in' / 'b.parquet')
    done = run(tmp_path / 'in', tmp_path / 'out', text_key='text,content')
    assert (done.cards[''].documents, done.cards[''].rejects) == (100, 0)


# --- the split


def sorted_corpus(folder, count=20_000, head=1_000, files=8):
    """The head of a corpus that is sorted by SHA-1, as deduplication leaves them."""
    corpus = (f'document {i} of a corpus' for i in range(count))
    documents = sorted(corpus, key=lambda text: hashlib.sha1(text.encode()).digest())[:head]
    folder.mkdir()
    for number in range(files):
        lines = (json.dumps({'text': text}) + '\n' for text in documents[number::files])
        (folder / f'{number}.jsonl').write_text(''.join(lines))
    return folder


def test_the_head_of_a_corpus_sorted_by_sha1_has_the_share_that_was_asked_for(run, tmp_path):
    said = []
    done = run(sorted_corpus(tmp_path / 'in'), tmp_path / 'out', val_fraction=0.02, say=said.append)
    train, val = (read_card(tmp_path / 'out' / split) for split in ('train', 'val'))
    assert 5 <= val.documents <= 45  # 20 are expected; the first rule took 400
    assert val.share_of_documents == pytest.approx(val.documents / 1_000)
    assert val.share_of_tokens == pytest.approx(val.tokens / (val.tokens + train.tokens), abs=1e-6)
    assert train.share_of_documents + val.share_of_documents == pytest.approx(1)
    words = f'val: {100 * val.share_of_documents:.1f} % of documents, {100 * val.share_of_tokens:.1f} % of tokens'
    assert f'{words} (2.0 % was asked for)' in said
    assert not any(line.startswith('warning') for line in said)
    assert done.cards['val'] == val


def test_work_of_the_first_rule_is_finished_and_recognized_by_it(run, tmp_path, monkeypatch):
    source, said = sorted_corpus(tmp_path / 'in'), []
    with monkeypatch.context() as old:
        old.setattr(convert_module, 'Job', functools.partial(Job, split_rule=1))
        run(source, tmp_path / 'before', val_fraction=0.02)
        interrupted(run, source, tmp_path / 'out', old, val_fraction=0.02)
    assert 'split_rule' not in read_card(tmp_path / 'before' / 'val').settings
    again = run(source, tmp_path / 'before', val_fraction=0.02)
    assert again.already_done
    run(source, tmp_path / 'out', val_fraction=0.02, say=said.append)
    assert any(line.startswith('going on at file ') for line in said)
    assert hashes(tmp_path / 'out') == hashes(tmp_path / 'before')
    assert read_card(tmp_path / 'out' / 'val').documents > 300
    (warning,) = (line for line in said if line.startswith('warning'))
    assert 'was asked for, which is no chance' in warning
    assert 'SHA-1' in warning


def test_two_conversions_do_not_share_a_place(run, inputs, tmp_path, tokenizer_path):
    from rewarm.data.staging import Staging

    holder = Staging(tmp_path / 'out.staging', Identity(settings={}, sources=()), [''])
    with pytest.raises(UserError, match='another conversion is at work'):
        run(inputs, tmp_path / 'out')
    holder.close()


# --- bad input


def test_rejects_are_listed_and_too_many_keep_the_work_unpublished(run, tmp_path):
    lines = [json.dumps({'text': text}) for text in texts(300)]
    lines[10], lines[200], lines[250] = '{"text": 1}', '{', '{"text": ""}'
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    with pytest.raises(UserError, match=r'2 of 300 records \(0.67%\) could not be read') as error:
        run(tmp_path / 'a.jsonl', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert f'{tmp_path}/out.staging/work/rejects.jsonl' in str(error.value)
    allowed = float(str(error.value).rsplit(' ', 1)[1])
    done = run(tmp_path / 'a.jsonl', tmp_path / 'out', max_rejects=allowed)
    listed = [json.loads(line) for line in (tmp_path / 'out' / 'rejects.jsonl').read_text().splitlines()]
    assert [(r['file'], r['line'], r['reason'].split(':')[0]) for r in listed] == [
        ('a.jsonl', 11, "'text' is int, not a string"),
        ('a.jsonl', 201, 'invalid JSON'),
    ]
    card = done.cards['']
    assert (card.rejects, card.documents_empty, card.documents) == (2, 1, 297)


def test_text_below_one_block_is_refused(run, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "short"}')
    with pytest.raises(UserError, match='less than one block of 65'):
        run(tmp_path / 'a.jsonl', tmp_path / 'out')
    (tmp_path / 'b.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in texts(20)))
    with pytest.raises(UserError, match=r'val has .* raise --val-fraction'):
        run(tmp_path / 'b.jsonl', tmp_path / 'out2', val_fraction=0.0001)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'val_fraction': 1.0}, '--val-fraction'),
        ({'max_rejects': 2.0}, '--max-rejects'),
        ({'workers': 0}, '--workers'),
        ({'text_key': 'body'}, "no key 'body'; the record has text"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, inputs, tmp_path, kwargs, message):
    with pytest.raises(UserError, match=message):
        run(inputs / 'd.jsonl', tmp_path / 'out', **kwargs)


def test_encoders_that_disagree_stop_the_conversion_and_leave_nothing(run, inputs, tmp_path, monkeypatch):
    pytest.importorskip('gigatoken')
    from rewarm.data import tokens

    class InProcess:
        """The workers' function, in this process so that it can be patched."""

        def __init__(self, count, make, args):
            self._work = make(*args)

        def map(self, items):
            return ((item, self._work(item)) for item in items)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(convert_module, 'Workers', InProcess)
    exactly = tokens.Encoder._encode_exactly
    monkeypatch.setattr(tokens.Encoder, '_encode_fast', lambda self, text: exactly(self, text)[::-1])
    with pytest.raises(UserError, match=r'gigatoken and tokenizers disagree .* --encoder tokenizers'):
        run(inputs, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == []


# --- the workers


def _make_square():
    def square(x):
        if x == 'die':
            os._exit(9)
        if x == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 'hang':
            time.sleep(60)
        if x == 'bug':
            raise ZeroDivisionError
        if x == 'user':
            raise UserError('the user')
        time.sleep(0.02 if x % 3 == 0 else 0)
        return x * x

    return square


def test_results_come_in_the_order_of_the_items():
    with Workers(3, _make_square, ()) as pool:
        assert list(pool.map(range(40))) == [(i, i * i) for i in range(40)]


@pytest.mark.parametrize(
    ('item', 'error', 'message'),
    [
        ('die', UserError, r'a worker died \(exit code 9\)'),
        ('kill', UserError, r'a worker died \(signal SIGKILL\)'),
        ('bug', RuntimeError, 'ZeroDivisionError'),
        ('user', UserError, 'the user'),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(item, error, message):
    with pytest.raises(error, match=message), Workers(2, _make_square, ()) as pool:
        list(pool.map([1, 2, item, 4, 5]))


def test_a_worker_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(pool, 'PATIENCE_SECONDS', 2.0)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match='not ended a piece of the work in 2 s'),
        Workers(2, _make_square, ()) as workers,
    ):
        list(workers.map([1, 'hang', 3, 4, 5]))
    assert time.monotonic() - began < 20


def test_converting_imports_no_torch():
    code = 'import sys, rewarm.data.convert, rewarm.data.verify; print([m for m in ("torch", "streaming", "composer") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.slow
def test_memory_stays_below_a_gigabyte_whatever_the_size(tmp_path, tokenizer_path):
    rng = random.Random(0)
    words = [[*WORDS[:8], 'print(x)', '3.14']] * 60 + [WORDS]  # one document in sixty goes the slow way
    line = [json.dumps({'text': ' '.join(rng.choices(w, k=3000))}, ensure_ascii=False) + '\n' for w in words]
    with (tmp_path / 'a.jsonl').open('w') as file:
        while file.tell() < 300 << 20:
            # a number in each makes the documents differ, and the fast encoder's cache work
            file.writelines(row.replace('warm', f'warm {rng.random()}', 200) for row in line)
    process = start(
        tmp_path / 'a.jsonl', tmp_path / 'out', tokenizer_path, part_bytes=4 << 20, shard_bytes=16 << 20,
        commit_seconds=5.0,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(resident(pid) for pid in (process.pid, *children_of_safely(process.pid))))
        time.sleep(0.02)
    assert process.returncode == 0
    print(f'peak of all processes: {peak / 1e6:.0f} MB')
    assert 0 < peak < 1 << 30


def children_of_safely(pid):
    try:
        return children_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []


def resident(pid):
    try:
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


# --- buckets


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """A client of a real S3 server on this machine, with the environment set for it."""
    server = S3Server(tmp_path_factory.mktemp('s3'))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server.client()
    server.stop()


def upload(client, folder, prefix):
    for path in folder.rglob('*'):
        if path.is_file():
            client.upload_file(str(path), 'data', f'{prefix}/{path.relative_to(folder).as_posix()}')


def download(client, prefix, folder):
    for item in client.list_objects_v2(Bucket='data', Prefix=prefix + '/').get('Contents', ()):
        path = folder / item['Key'][len(prefix) + 1 :]
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file('data', item['Key'], str(path))
    return hashes(folder)


def test_from_bucket_to_bucket_gives_what_a_folder_gives(run, inputs, tmp_path, bucket):
    import pyarrow as pa
    import pyarrow.parquet

    folder = tmp_path / 'src' / 'in'
    folder.mkdir(parents=True)
    for path in inputs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    pyarrow.parquet.write_table(pa.table({'text': texts(200, 9)}), folder / 'f.parquet')
    upload(bucket, folder, 'src/in')
    upload(bucket, folder, 'src/in-2')  # a sibling that must not be read
    run(folder, tmp_path / 'local', val_fraction=0.1)
    done = run('s3://data/src/in', 's3://data/out', val_fraction=0.1, staging=str(tmp_path / 'stage'), workers=2)
    assert download(bucket, 'out', tmp_path / 'down') == hashes(tmp_path / 'local')
    assert not (tmp_path / 'stage').exists()
    again = run('s3://data/src/in', 's3://data/out', val_fraction=0.1, staging=str(tmp_path / 'stage'))
    assert again.already_done
    assert again.cards == done.cards
    with pytest.raises(UserError, match='seq_len: 64 there, 32 now'):
        run('s3://data/src/in', 's3://data/out', val_fraction=0.1, seq_len=32)


def test_an_upload_that_breaks_off_looks_like_nothing_and_goes_on(run, inputs, tmp_path, bucket, monkeypatch):
    from rewarm.buckets.s3 import S3Bucket

    lock, count, whole = threading.Lock(), [0], S3Bucket.upload

    def break_off(self, path, url, sha256=None):
        with lock:
            count[0] += 1
        if count[0] > 4:
            raise KeyboardInterrupt
        whole(self, path, url, sha256)

    with monkeypatch.context() as patch:
        patch.setattr(S3Bucket, 'upload', break_off)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, 's3://data/broken', staging=str(tmp_path / 'stage'))
    names = [o['Key'] for o in bucket.list_objects_v2(Bucket='data', Prefix='broken/')['Contents']]
    assert names
    assert not any(name.endswith('index.json') for name in names)
    run(inputs, 's3://data/broken', staging=str(tmp_path / 'stage'))
    run(inputs, tmp_path / 'local')
    assert download(bucket, 'broken', tmp_path / 'down') == hashes(tmp_path / 'local')


def test_a_bucket_that_is_not_there_is_said_in_words(run, inputs, tmp_path, bucket, monkeypatch):
    with pytest.raises(UserError, match=r's3://nowhere/x: .*S3_ENDPOINT_URL'):
        run('s3://nowhere/x', tmp_path / 'out')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'wrong')
    monkeypatch.setattr(s3, '_client', s3._client.__wrapped__)  # it keeps the keys it first saw
    with pytest.raises(UserError, match='s3://data/src'):
        run('s3://data/src', tmp_path / 'out')


def test_an_object_replaced_under_the_reader_is_an_error(bucket):
    from rewarm.buckets.s3 import S3Bucket

    bucket.put_object(Bucket='data', Key='x/a', Body=b'1' * (9 << 20))
    ((_, size, etag),) = S3Bucket().list('s3://data/x/a')
    with S3Bucket().open('s3://data/x/a', size, etag) as file:
        assert file.read(10) == b'1' * 10
        bucket.put_object(Bucket='data', Key='x/a', Body=b'2' * (9 << 20))
        with pytest.raises(UserError, match='s3://data/x/a'):
            file.read()


def test_a_card_is_read_back_as_it_was_written(run, inputs, tmp_path):
    done = run(inputs, tmp_path / 'out')
    text = (tmp_path / 'out' / 'dataset_card.json').read_text()
    assert DatasetCard.model_validate_json(text) == done.cards['']

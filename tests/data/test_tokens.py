"""The tokenizer found, the encoders equal, and what ends a document."""

import io
import json
import random
import unicodedata

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.config.errors import UserError
from rewarm.data import tokens
from rewarm.data.tokens import Encoder, ParityError, find_tokenizer, read_tokenizer

gigatoken = pytest.importorskip('gigatoken', reason='gigatoken is not installed (pip install "rewarm[convert]")')


@pytest.fixture(scope='module')
def encoder(tokenizer_path):
    return Encoder(read_tokenizer(tokenizer_path))


@pytest.fixture(scope='module')
def exact(tokenizer_path):
    """The definition: `tokenizers` alone, as its documentation says to keep special tokens as text."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def edited(tokenizer_path, tmp_path, **changes):
    config = json.loads(tokenizer_path.read_text())
    (tmp_path / 'tokenizer.json').write_text(json.dumps({**config, **changes}))
    return tmp_path / 'tokenizer.json'


def test_a_tokenizer_is_found_by_file_folder_and_cached_id(tokenizer_path, tmp_path, monkeypatch):
    import huggingface_hub.file_download

    snapshot = tmp_path / 'models--a--b' / 'snapshots' / 'c0ffee'
    snapshot.mkdir(parents=True)
    (snapshot / 'tokenizer.json').write_bytes(tokenizer_path.read_bytes())
    (tmp_path / 'models--a--b' / 'refs').mkdir()
    (tmp_path / 'models--a--b' / 'refs' / 'main').write_text('c0ffee')
    monkeypatch.setattr(huggingface_hub.file_download, 'HF_HUB_CACHE', str(tmp_path), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    assert find_tokenizer(str(tokenizer_path)) == tokenizer_path
    assert find_tokenizer(str(tokenizer_path.parent)) == tokenizer_path
    assert find_tokenizer('a/b') == snapshot / 'tokenizer.json'
    with pytest.raises(UserError, match=r'hf download a/c tokenizer\.json'):
        find_tokenizer('a/c')
    with pytest.raises(UserError, match=r'holds no tokenizer\.json'):
        find_tokenizer(str(tmp_path))


def test_facts_of_a_tokenizer(tokenizer_path):
    facts = read_tokenizer(tokenizer_path)
    assert (facts.vocab_size, facts.eod, facts.eod_id, facts.dtype) == (993, '<|endoftext|>', 0, 'uint16')
    assert facts.encoder == 'gigatoken'
    assert 'gigatoken' in facts.why
    assert 'tokenizers' in facts.why


def test_the_end_of_a_document_is_what_the_tokenizer_says_or_what_is_asked(tokenizer_path, tmp_path):
    path = edited(tokenizer_path, tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": {"content": "<|padding|>"}}')
    assert read_tokenizer(path).eod_id == 1
    assert read_tokenizer(path, eod='<|endoftext|>').eod_id == 0
    with pytest.raises(UserError, match="has no token '</s>'; name the one"):
        read_tokenizer(path, eod='</s>')


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'normalizer': {'type': 'Lowercase'}}, 'the normalizer is not NFC'),
        ({'pre_tokenizer': {'type': 'Whitespace'}}, "the pre-tokenizer is not GPT-2's"),
    ],
)
def test_a_tokenizer_of_another_kind_is_run_by_the_definition(tokenizer_path, tmp_path, changes, reason):
    path = edited(tokenizer_path, tmp_path, **changes)
    facts = read_tokenizer(path)
    assert facts.encoder == 'tokenizers'
    assert reason in facts.why
    with pytest.raises(UserError, match='Use --encoder tokenizers'):
        read_tokenizer(path, encoder='gigatoken')
    assert Encoder(facts).encode('ABC').tolist()


def test_a_literal_end_of_document_inside_text_is_text(encoder, exact):
    for text in ('a<|endoftext|>b', '<|endoftext|>', '<|padding|>', 'é <|endoftext|> ü'):
        assert not encoder.fast_can(text)
        assert encoder.encode(text).tolist() == exact(text)
        assert not {0, 1} & set(encoder.encode(text).tolist())


def test_an_end_of_document_not_marked_special_is_text_all_the_same(tokenizer_path, tmp_path):
    config = json.loads(tokenizer_path.read_text())
    for token in config['added_tokens']:
        token['special'] = False
    path = edited(tokenizer_path, tmp_path, added_tokens=config['added_tokens'])
    assert 0 not in Encoder(read_tokenizer(path)).encode('a<|endoftext|>b').tolist()


def test_truncation_and_templates_of_the_file_do_not_reach_the_data(tokenizer_path, tmp_path, encoder):
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='<|endoftext|> $A', special_tokens=[('<|endoftext|>', 0)]
    )
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    other = Encoder(read_tokenizer(tmp_path / 'tokenizer.json', encoder='tokenizers'))
    assert other.encode('a text of some length').tolist() == encoder.encode('a text of some length').tolist()


def test_text_is_normalised_as_the_tokenizer_says(encoder, exact):
    assert encoder.encode('e\u0301').tolist() == encoder.encode('é').tolist() == exact('é')
    for text in ('\u212b', '\uac00\u11a8', '\u0915\u093c', '\u1161', '\u0c15\u0c3c\u0316'):  # composing, reordering
        assert not encoder.fast_can(text)
        assert encoder.encode(text).tolist() == exact(text)


def test_every_character_that_the_fast_encoder_may_see_is_the_same_to_both(encoder):
    unsafe = tokens.unsafe_code_points()
    safe = [chr(code) for code in np.flatnonzero(~unsafe)]
    assert len(safe) > 140_000
    for pattern in ('a%sb', ' %s 1', "1%s's", '\n%s  x'):
        for start in range(0, len(safe), 4096):
            text = '.'.join(pattern % character for character in safe[start : start + 4096])
            assert np.array_equal(encoder._encode_fast(text), encoder._encode_exactly(text)), (pattern, start)


def test_safe_text_is_normalised_already():
    safe = [chr(code) for code in np.flatnonzero(~tokens.unsafe_code_points())]
    rng = random.Random(0)
    for _ in range(200):
        text = ''.join(rng.choices(safe, k=1000))
        assert unicodedata.is_normalized('NFC', text)


@settings(max_examples=1500, deadline=None)
@given(text=st.text(max_size=60))
def test_random_text_is_encoded_as_the_definition_does(text, encoder, exact):
    assert encoder.encode(text).tolist() == exact(text)


@settings(max_examples=1500, deadline=None)
@given(text=st.text(st.sampled_from('ab1 \n\t\r.é漢\u0301\u00a0\u2003\U0001f600'), max_size=60))
def test_random_text_of_few_characters_is_encoded_as_the_definition_does(text, encoder, exact):
    assert encoder.encode(text).tolist() == exact(text)


@pytest.mark.parametrize('which', ['gigatoken', 'tokenizers'])
def test_long_documents_are_cut_without_changing_a_token(tokenizer_path, exact, monkeypatch, which):
    encoder = Encoder(read_tokenizer(tokenizer_path, encoder=which))
    monkeypatch.setattr(tokens, '_SEGMENT_CHARACTERS', 40)
    rng, pieces = random.Random(0), 0
    for _ in range(100):
        text = ''.join(rng.choices(['ab', '.', ' ', '\n', '\n\n', '1', "'s", 'é', '\t', '  '], k=600))
        pieces += len(list(encoder._segments(text)))
        assert encoder.encode(text).tolist() == exact(text)
    assert pieces > 300


def test_a_difference_between_the_encoders_stops_with_the_way_out(tokenizer_path, monkeypatch):
    encoder = Encoder(read_tokenizer(tokenizer_path))
    encoder.check(['the same', 'to both'])
    monkeypatch.setattr(encoder, '_encode_fast', lambda text: np.array([1, 2, 3], np.uint32))
    with pytest.raises(ParityError, match='--encoder tokenizers'):
        encoder.check(['not the same'])


@pytest.mark.parametrize('corpus', ['mini-pile.val', 'english-shift.val', 'german-law.val'])
def test_real_documents_and_pythias_tokenizer_give_the_same_tokens(real_data, neox_path, corpus):
    facts = read_tokenizer(neox_path)
    assert (facts.vocab_size, facts.eod_id, facts.dtype) == (50277, 0, 'uint16')
    fast, slow = Encoder(facts), Encoder(read_tokenizer(neox_path, encoder='tokenizers'))
    with (real_data / 'corpora' / f'{corpus}.jsonl.zst').open('rb') as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding='utf-8', newline='\n')
        texts = [json.loads(line)['text'] for line in lines]
    assert len(texts) > 50
    assert sum(map(fast.fast_can, texts)) > 0.9 * len(texts)
    for text in texts:
        assert np.array_equal(fast.encode(text), slow.encode(text)), text[:80]


def test_random_unicode_and_pythias_tokenizer_give_the_same_tokens(neox_path):
    fast, slow = Encoder(read_tokenizer(neox_path)), Encoder(read_tokenizer(neox_path, encoder='tokenizers'))
    rng, through_fast = random.Random(0), 0
    planes = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x3100), (0x3100, 0xD800), (0xE000, 0x110000)]
    unsafe = tokens.unsafe_code_points()
    for number in range(4000):
        codes = [rng.randrange(*rng.choice(planes[: rng.randint(1, 6)])) for _ in range(rng.randint(0, 80))]
        codes = [code for code in codes if not unsafe[code]] if number % 2 else codes
        text = ''.join(chr(code) + ' ' * rng.choice((0, 0, 0, 1, 5)) for code in codes)
        through_fast += fast.fast_can(text)
        assert np.array_equal(fast.encode(text), slow.encode(text)), text
    assert through_fast > 1000


@pytest.mark.slow
def test_thousands_of_real_records_and_pythias_tokenizer_give_the_same_tokens(real_data, neox_path):
    fast, slow = Encoder(read_tokenizer(neox_path)), Encoder(read_tokenizer(neox_path, encoder='tokenizers'))
    count = 0
    for corpus in ('mini-pile', 'english-shift', 'german-law'):
        with (real_data / 'corpora' / f'{corpus}.jsonl.zst').open('rb') as file:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding='utf-8', newline='\n')
            for line, _ in zip(lines, range(1500)):
                text = json.loads(line)['text'][:20_000]
                assert np.array_equal(fast.encode(text), slow.encode(text)), text[:80]
                count += 1
    for line in (real_data / 'real-records' / 'lambada.jsonl').read_bytes().split(b'\n')[:3000]:
        if line:
            text = json.loads(line)['text']
            assert np.array_equal(fast.encode(text), slow.encode(text)), text[:80]
            count += 1
    assert count > 7000


# --- tokenizers that somebody else made


def test_ids_that_tokenizers_gives_otherwise_than_the_file_are_refused(tokenizer_path, tmp_path):
    added = json.loads(tokenizer_path.read_text())['added_tokens']
    far = {**added[0], 'id': 100_000, 'content': '<far>'}
    with pytest.raises(UserError, match="the token '<far>': has the id 100000, and `tokenizers` gives it"):
        read_tokenizer(edited(tokenizer_path, tmp_path, added_tokens=[*added, far]))


@pytest.mark.parametrize('part', ['normalizer', 'pre_tokenizer'])
def test_a_pattern_without_end_is_given_up_in_words(tokenizer_path, tmp_path, part):
    pattern = {'Regex': '(a+)+$'}
    changes = {
        'normalizer': {'type': 'Replace', 'pattern': pattern, 'content': ''},
        'pre_tokenizer': {'type': 'Split', 'pattern': pattern, 'behavior': 'Isolated', 'invert': False},
    }
    encoder = Encoder(read_tokenizer(edited(tokenizer_path, tmp_path, **{part: changes[part]})))
    with pytest.raises(UserError, match=r'`tokenizers` fails on the text that begins .*retry-limit'):
        encoder.encode('a' * 40 + '!')


@pytest.mark.parametrize('normalizer', [{'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}, {'type': 'None'}])
def test_what_tokenizers_cannot_load_is_told(tokenizer_path, tmp_path, normalizer):
    with pytest.raises(UserError, match='not a tokenizer that `tokenizers` can read'):
        read_tokenizer(edited(tokenizer_path, tmp_path, normalizer=normalizer))

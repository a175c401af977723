from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.config.duration import Duration


@pytest.mark.parametrize(
    ('text', 'value', 'unit'),
    [
        ('2.97e9tok', 2_970_000_000, 'tok'),
        ('2_000_000tok', 2_000_000, 'tok'),
        ('500ba', 500, 'ba'),
        ('0.5%', Fraction(1, 2), '%'),
        ('10min', 10, 'min'),
        ('25sec', 25, 'sec'),
        ('1.5h', Fraction(3, 2), 'h'),
    ],
)
def test_spellings(text, value, unit):
    assert Duration.parse(text) == Duration(value, unit)
    assert isinstance(Duration.parse(text).value, type(value))


@pytest.mark.parametrize('text', ['', '5', 'tok', '-5tok', '5 apples', '1e3', 'nantok', '5tok 3ba'])
def test_what_is_not_a_duration_is_refused_with_examples(text):
    with pytest.raises(ValueError, match='must be a duration such as'):
        Duration.parse(text)


def test_half_a_token_is_refused():
    with pytest.raises(ValueError, match='whole number of tokens'):
        Duration.parse('1.5tok')


def test_dur_and_epochs_say_what_to_write_instead():
    with pytest.raises(ValueError, match=r'`dur`.*moves when the budget does.*`10%`'):
        Duration.parse('0.1dur')
    with pytest.raises(ValueError, match='an epoch or a sample has no meaning across stages'):
        Duration.parse('2ep')


@given(st.integers(0, 10**15), st.sampled_from(['tok', 'ba', 'sec', 'min', 'h', '%']))
def test_whole_numbers_read_back_as_they_are_written(value, unit):
    assert Duration.parse(str(Duration(value, unit))) == Duration(value, unit)


@given(st.decimals(0, 10**6, places=4), st.sampled_from(['sec', '%', 'h']))
def test_decimals_read_back_as_they_are_written(value, unit):
    duration = Duration.parse(f'{value:f}{unit}')
    assert Duration.parse(str(duration)) == duration


def test_long_numbers_are_written_short():
    assert str(Duration.parse('296860000000tok')) == '296.86e9tok'
    assert str(Duration.parse('296859205632tok')) == '296859205632tok'
    assert str(Duration.parse('500ba')) == '500ba'


def test_lengths_in_tokens_and_batches():
    assert Duration.parse('3ba').tokens(32) == 96
    assert Duration.parse('1%').tokens(32, 6400) == 64
    assert Duration.parse('0.5%').tokens(32, 1001) == 5
    assert Duration.parse('100tok').batches(32) == 3
    assert Duration.parse('1tok').batches(32) == 1
    assert Duration.parse('2min').seconds == 120


def test_time_has_no_tokens_and_tokens_no_seconds():
    with pytest.raises(ValueError, match='no length in tokens'):
        Duration.parse('10min').tokens(32)
    with pytest.raises(ValueError, match='no length in tokens'):
        Duration.parse('1%').tokens(32)
    with pytest.raises(ValueError, match='not a time'):
        _ = Duration.parse('5ba').seconds


@pytest.mark.parametrize(
    'text',
    [
        '1e-20000sec',
        '1e999999999sec',
        '1e-999999999tok',
        '1e5000tok',
        '1e309h',
        '1e300h',
        '9' * 5000 + 'ba',
        '0.' + '3' * 5000 + '%',
        '1e-31sec',
        '1e19tok',
        '3e15h',
        '1__0tok',
        '1._5tok',
        '1_e3tok',
        '1_tok',
        '10\ttok',
        '10tok\n',
    ],
)
def test_what_no_run_has_is_refused_at_once_and_shortly(text):
    with pytest.raises(ValueError, match=r'^must be a') as caught:
        Duration.parse(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    'text',
    [
        '9_223_372_036_854_775_807tok',
        '1e-30sec',
        '0.000_1%',
        '1_000ba',
        '2.5e15h',
        '123456.123456789012345678901234567890sec',
    ],
)
def test_the_longest_numbers_read_back_equal(text):
    duration = Duration.parse(text)
    assert Duration.parse(str(duration)) == duration

from fractions import Fraction

import pytest

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.new.request import Budget, check_name, parse_budget, parse_evaluated, parse_replayed, parse_source


@pytest.mark.parametrize(
    ('text', 'name', 'place'),
    [
        ('law=data/law', 'law', 'data/law'),
        ('data/law/', 'law', 'data/law'),
        ('law=s3://bucket/law', 'law', 's3://bucket/law'),
        ('s3://bucket/x=y/law', 'law', 's3://bucket/x=y/law'),
        ('./a=b/law', 'law', './a=b/law'),
        ('law=a=b', 'law', 'a=b'),
        ('law=/', 'law', '/'),
    ],
)
def test_sources(text, name, place):
    source = parse_source(text)
    assert (source.name, source.place) == (name, place)


@pytest.mark.parametrize(
    ('text', 'share', 'place'),
    [
        ('old=data/old', '0.05', 'data/old'),
        ('old=data/old:0.25', '0.25', 'data/old'),
        ('old=data/old:5%', '0.05', 'data/old'),
        ('old=data/old:.5', '0.5', 'data/old'),
        ('old=s3://bucket/old', '0.05', 's3://bucket/old'),
        ('old=s3://bucket/old:12.5%', '0.125', 's3://bucket/old'),
    ],
)
def test_replay(text, share, place):
    source = parse_replayed(text)
    assert (source.name, source.place, source.share) == ('old', place, Fraction(share))


@pytest.mark.parametrize('text', ['old=data/old:1', 'old=data/old:0', 'old=data/old:100%', 'old=data/old:much'])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r'0.05'):
        parse_replayed(text)


def test_roles():
    assert [parse_evaluated(f'x=data/x:{role}').role for role in ('old', 'upstream', 'new', 'downstream')] == [
        'upstream',
        'upstream',
        'downstream',
        'downstream',
    ]
    with pytest.raises(UserError, match='old or new'):
        parse_evaluated('x=data/x')


@pytest.mark.parametrize(
    ('text', 'budget'),
    [
        ('1ep', Budget(Fraction(1))),
        ('2.5 passes', Budget(Fraction(5, 2))),
        ('10Btok', Budget(None, Duration(10_000_000_000, 'tok'))),
        ('1.5M', Budget(None, Duration(1_500_000, 'tok'))),
        ('2.97e9tok', Budget(None, Duration(2_970_000_000, 'tok'))),
        ('500ba', Budget(None, Duration(500, 'ba'))),
    ],
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize('text', ['0ep', '0tok', '10min', '1%', 'all', '', '-1ep', '1.5ba', '1e999tok', '²ep'])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r'write tokens \(10Btok'):
        parse_budget(text)


@pytest.mark.parametrize(
    'name', ['', '..', '../x', '/etc/x', 'a/b', '-rf', 'a b', 'x\n', 'ü', '\ud800', 'x' * 201, '$(id)', 'a;b']
)
def test_a_name_that_could_be_something_else_is_refused(name):
    with pytest.raises(UserError, match='letters, digits'):
        check_name(name)

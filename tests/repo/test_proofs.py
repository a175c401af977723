"""A proof is repeated when what it is about has changed, and only then."""

import json
from pathlib import Path

import pytest

from tests import proofs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', proofs.PROOFS)
def test_every_pattern_of_a_proof_names_files_that_are_there(name):
    for pattern in proofs.PROOFS[name]:
        assert list(ROOT.glob(pattern)), pattern


def test_a_digest_changes_with_content_names_and_nothing_else(tmp_path):
    (tmp_path / 'a.py').write_text('x')
    before = proofs.digest(['*.py'], tmp_path)
    (tmp_path / 'b.txt').write_text('y')
    assert proofs.digest(['*.py', 'a.*'], tmp_path) == before
    (tmp_path / 'a.py').write_text('z')
    changed = proofs.digest(['*.py'], tmp_path)
    (tmp_path / 'a.py').rename(tmp_path / 'c.py')
    assert len({before, changed, proofs.digest(['*.py'], tmp_path)}) == 3


def test_a_proof_is_repeated_for_other_files_and_on_request(monkeypatch, tmp_path):
    record = tmp_path / 'proofs.json'
    monkeypatch.setattr(proofs, 'RECORD', record)
    monkeypatch.delenv(proofs.EVERY, raising=False)
    assert not proofs.is_proven('aot')
    record.write_text(json.dumps({'aot': proofs.digest(proofs.PROOFS['aot'])}))
    assert proofs.is_proven('aot')
    assert not proofs.is_proven('mutations')
    monkeypatch.setenv(proofs.EVERY, '1')
    assert not proofs.is_proven('aot')

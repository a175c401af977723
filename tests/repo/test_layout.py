"""The shape of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_kernels_folder_is_no_package():
    assert not (ROOT / 'kernels/__init__.py').exists(), (
        'Hugging Face owns the import name `kernels`, and transformers imports it: ours would be imported instead, or crash'
    )


def test_locks_hold_names_and_versions_only():
    for lock in ROOT.glob('requirements*.lock'):
        for line in lock.read_text().splitlines():
            assert '://' not in line
            assert '@' not in line

"""The shape of the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob('requirements*.lock'))


def test_kernels_folder_is_no_package():
    assert not (ROOT / 'kernels/__init__.py').exists(), (
        'Hugging Face owns the import name `kernels`, and transformers imports it: ours would be imported instead, or crash'
    )


REQUIREMENT = re.compile(r'[a-z0-9-]+={2,3}[0-9][a-z0-9.+]*( ; [^#]+)?( --hash=sha256:[0-9a-f]{64})+')


def requirements(lock: Path) -> list[str]:
    """One for each package: name, version, marker and hashes."""
    return lock.read_text().replace('\\\n', ' ').splitlines()


@pytest.mark.parametrize('lock', LOCKS, ids=lambda lock: lock.name)
def test_locks_hold_names_versions_markers_and_the_hash_of_every_file(lock):
    for line in requirements(lock):
        assert REQUIREMENT.fullmatch(re.sub(' +', ' ', line)), line
        assert '://' not in line
        assert '@' not in line


@pytest.mark.parametrize('lock', LOCKS, ids=lambda lock: lock.name)
def test_locks_hold_what_builds_this_package_itself(lock):
    """It would be fetched without a hash otherwise."""
    names = {line.split('=')[0] for line in requirements(lock)}
    assert {'hatchling', 'editables', 'packaging', 'pathspec', 'pluggy', 'trove-classifiers'} <= names


def test_the_environment_is_installed_by_hash_and_nothing_is_built_or_fetched_beside_it():
    installs = [line for line in (ROOT / 'scripts/env.sh').read_text().splitlines() if 'pip" install' in line]
    assert all('--no-deps' in line for line in installs)
    assert ['--require-hashes --only-binary :all: -r' in line for line in installs] == [True, False]
    assert ['--no-build-isolation -e .' in line for line in installs] == [False, True]

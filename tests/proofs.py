"""Long proofs of what seldom changes: tests run one of them again when a file that it is about has changed.

``make prove`` runs all of them and, when they pass, writes down what they have seen: the digest of those files and the
versions of torch and triton. A test that bears ``@pytest.mark.proof('NAME')`` is skipped while both are the same.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

__all__ = ['EVERY', 'PROOFS', 'digest', 'is_proven', 'main']

ROOT = Path(__file__).parents[1]
RECORD = ROOT / 'tests' / 'proofs.json'
EVERY = 'REWARM_EVERY_PROOF'
"""Set in the environment, no proof is skipped."""

PROOFS: Mapping[str, tuple[str, ...]] = {
    'aot': ('kernels/rewarm_kernels/*.py', 'kernels/aot*.py', 'kernels/results/aot.csv', 'tests/kernels/test_aot.py'),
    'mutations': ('kernels/rewarm_kernels/*.py', 'kernels/mutate.py', 'tests/kernels/*.py'),
    '200 steps': (
        'kernels/rewarm_kernels/*.py',
        *(f'rewarm/model/{name}.py' for name in ('attention', 'composer_model', 'ops', 'pythia')),
        'tests/model/test_fused.py',
    ),
}
"""What each proof is about."""


def digest(patterns: Iterable[str], root: Path = ROOT) -> str:
    """SHA-256 of the files' names and contents, and of the versions that they are compiled with."""
    found = hashlib.sha256(' '.join(version(name) for name in ('torch', 'triton')).encode())
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        content = path.read_bytes()
        found.update(f'\n{path.relative_to(root)} {len(content)}\n'.encode() + content)
    return found.hexdigest()


def is_proven(name: str) -> bool:
    """Whether the proof has passed with the files as they are."""
    if EVERY in os.environ or not RECORD.exists():
        return False
    return json.loads(RECORD.read_text()).get(name) == digest(PROOFS[name])


def main() -> int:
    """Runs all proofs; writes down what they have seen if they pass."""
    os.environ[EVERY] = '1'
    seen = {name: digest(patterns) for name, patterns in PROOFS.items()}
    if status := pytest.main(
        ['-m', 'proof', '--durations', '0', str(ROOT / 'tests/kernels'), str(ROOT / 'tests/model')]
    ):
        return int(status)
    RECORD.write_text(json.dumps(seen, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())

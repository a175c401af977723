"""Without a GPU, Triton interprets kernels; it reads the variable when a kernel is defined, so it is set before any import."""

import os
from pathlib import Path

if not any(Path('/dev').glob('nvidia[0-9]*')):
    os.environ.setdefault('TRITON_INTERPRET', '1')

"""The main job: ``composer scripts/train.py RUN.yaml [key=value ...]``, the same as ``composer -m rewarm train RUN.yaml``.

Started again, it goes on; finished, it says so. Exit codes: 0 done, 2 the input is wrong, 75 preempted, start me again.
"""

import sys

from rewarm.cli import main

if __name__ == '__main__':
    sys.argv[1:1] = ['train']
    main()

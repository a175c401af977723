"""Text to shards, for those who call scripts by their path: ``python scripts/convert.py SRC... OUT --tokenizer T``."""

import sys

from rewarm.cli import main

if __name__ == '__main__':
    sys.argv[1:1] = ['convert']
    main()

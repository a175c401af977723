"""``python -m rewarm`` is the same as ``rewarm``."""

from rewarm.cli import main

if __name__ == '__main__':
    main()

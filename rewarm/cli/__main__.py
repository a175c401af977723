"""``python -m rewarm.cli`` is the same as ``rewarm``."""

from rewarm.cli.commands import main

if __name__ == '__main__':
    main()

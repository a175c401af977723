"""What commands print for programs."""

import json

__all__ = ['print_json']


def print_json(value: object) -> None:
    """Prints JSON on standard output: indented, ASCII, and no NaN, which is no JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))

"""The tiny run of the end-to-end tests, started here by the launch scripts."""

from tests.end_to_end.conftest import data, make_run

__all__ = ['data', 'make_run']

"""Continual pre-training that survives machines vanishing; start reading at :mod:`rewarm.train`."""

__version__ = '0.1.0'

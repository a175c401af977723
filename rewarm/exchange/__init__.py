"""Checkpoints that travel: to Hugging Face folders and back, looked over wherever they are."""

from rewarm.exchange.exporting import export_command
from rewarm.exchange.importing import import_command
from rewarm.exchange.verifying import verify_command

__all__ = ['export_command', 'import_command', 'verify_command']

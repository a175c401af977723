"""Fused operations for GPT-NeoX models, one per file; this folder is empty until the first of them is measured."""

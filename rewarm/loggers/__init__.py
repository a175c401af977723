"""Composer's loggers through all starts of a run: one run stays one run, and a logger that fails costs it nothing."""

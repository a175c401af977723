"""The names and arguments of Composer's loggers, so that a typo is found before Composer is imported."""

LOGGERS: dict[str, tuple[str, ...] | None] = {
    'tensorboard': ('log_dir', 'flush_interval', 'rank_zero_only'),
    'wandb': ('project', 'group', 'name', 'entity', 'tags', 'log_artifacts', 'rank_zero_only', 'init_kwargs'),
    'mlflow': None,
    'neptune': None,
    'comet_ml': ('workspace', 'project_name', 'log_code', 'log_graph', 'name', 'rank_zero_only', 'exp_kwargs'),
    'file': ('capture_stdout', 'capture_stderr', 'buffer_size', 'log_traces', 'flush_interval'),
    'in_memory': (),
}
"""For each logger the arguments it takes, or None where it takes more than can be listed. A test compares them with Composer's.

The run names the files of `file` itself, since Composer 0.32.1 overwrites a file that is there whatever its `overwrite` says."""

POSITIVE_INTEGERS = ('flush_interval', 'buffer_size')
"""Arguments by which Composer's loggers divide, or which they count up to, after the first batch."""

PATHS = ('log_dir',)
"""Arguments that are paths on this machine."""

"""Settings: a YAML file becomes a frozen, typed ``RunConfig`` and then a ``Plan``. Imports no torch."""

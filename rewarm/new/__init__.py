"""``rewarm new``: a run file for the user's data, from a few answers and what the datasets say about themselves.

Comes in: a :class:`~rewarm.new.request.Request`. Goes out: a YAML file that ``rewarm plan`` accepts. No torch.
"""

"""Deliberative search: think, search, read, state a confidence, answer. `grammar.py` is what is written, `trajectory.py` how."""

"""Hypothesis asks of a test what it finds, never how fast it was: the machine may be busy."""

from hypothesis import settings

settings.register_profile("safeladder", deadline=None)
settings.load_profile("safeladder")

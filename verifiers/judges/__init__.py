"""Generative judges: language models that are asked for one label of a fixed set.

A judge is a template, a set of labels with scores, and a model that answers: `local.py` (an engine of this process) or `remote.py` (an
OpenAI-compatible server). `judge.py` holds what they share; `models.py` knows the released judges and guards by name.
"""

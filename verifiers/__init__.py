"""Verifiers: one module each, all behind `contract.py`, named in `registry.py`.

Importing this package, the contract, the registry or a rule imports no torch, so that a process of rules starts fast.
"""

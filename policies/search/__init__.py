"""How a policy deliberates: step-level search under process verifiers. `base.py` is what a strategy is; one file a strategy."""

"""Rules: verifiers that need no model. One file a rule."""

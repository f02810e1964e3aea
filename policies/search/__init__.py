"""Search over candidates under verifiers. One file a strategy."""

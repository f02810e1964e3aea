"""Training of verifiers: heads from configurations, their data, gates and reports."""

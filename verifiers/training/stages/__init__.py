"""What comes between files and a fit: duplicates, leakage, split, balance; and what comes after: the held-out report."""

"""The ladder: rungs in order, each a run that begins with the last one's checkpoint, is evaluated before and after, and passes a gate."""

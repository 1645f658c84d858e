"""Algorithm 1: options, the joint and its mask, thresholds and back-off, exact mode, step records."""

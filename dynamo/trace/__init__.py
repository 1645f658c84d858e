"""Recorded runs: NDJSON lines, and the recorder that folds step records into them."""

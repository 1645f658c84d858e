"""Runs on the wire: NDJSON lines, and the recorder that folds step records into them."""

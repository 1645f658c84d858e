"""Whole paths: from a base to data, heads and a pair that can be shown."""

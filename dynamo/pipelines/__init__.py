"""Whole paths: from a base to data, heads and a pair that the page can show."""

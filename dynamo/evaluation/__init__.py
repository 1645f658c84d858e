"""Measures of models and of the text they generate."""

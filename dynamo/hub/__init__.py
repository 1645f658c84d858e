"""Checkpoints to the hub: commits and model cards."""

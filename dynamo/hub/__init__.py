"""Uploading checkpoints to the hub: commits and model cards."""

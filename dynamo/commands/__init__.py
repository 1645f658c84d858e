"""The verbs of `python -m dynamo`: each module has `configure(parser)` and `run(arguments) -> dict`."""

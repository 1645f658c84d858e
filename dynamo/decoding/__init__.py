"""From a model to a stream of steps: caches, decoders, one text's sequence, the engine."""

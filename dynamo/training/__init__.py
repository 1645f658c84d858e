"""Training of token heads: options and recipes, the trainer, losses of held-out documents."""

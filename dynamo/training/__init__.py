"""Training of token heads: `train` and `finetune` with options and recipes, losses of held-out documents."""

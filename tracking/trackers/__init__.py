"""Where a run's numbers go besides ``metrics.jsonl``: wandb, tensorboard, trackio, several of them, none."""

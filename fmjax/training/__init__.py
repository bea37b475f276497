"""The sharded training step, the training loop, checkpoints and reports."""

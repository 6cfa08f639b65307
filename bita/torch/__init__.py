"""Models in torch: the reference decoder, base models of checkpoints, LoRA hooks."""

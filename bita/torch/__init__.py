"""The model in torch: the reference decoder, checkpoints' own models, LoRA hooks."""

"""Checkpoints in Hugging Face directories."""

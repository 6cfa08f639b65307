"""Checkpoints stored as GGUF files."""

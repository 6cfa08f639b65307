"""Checkpoints stored as Hugging Face model directories."""

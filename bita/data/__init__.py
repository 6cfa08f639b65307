"""Prompts and answers: read, written by the model, filtered and kept. No torch at import."""

"""Tuning of an adapter: data that the model writes itself, and training of the mask rows only."""

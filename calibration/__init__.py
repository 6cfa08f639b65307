"""Measurements of a deployed engine, and what is chosen from them."""

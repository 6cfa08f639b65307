"""Measurements of a deployed engine, and the choices based on them."""

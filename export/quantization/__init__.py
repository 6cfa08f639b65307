"""Quantize weights to few bits, using only numpy."""

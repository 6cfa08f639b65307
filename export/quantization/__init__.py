"""Weights in few bits, with numpy alone."""

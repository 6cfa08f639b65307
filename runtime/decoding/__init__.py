"""Decoding on token ids: draft, verify, accept, commit."""

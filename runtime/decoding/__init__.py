"""The decode round on token ids: draft, verify, accept, commit."""

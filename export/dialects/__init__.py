"""The step graph, and the operators it can be written in."""

"""The step graph, and the sets of operators it can be written in."""

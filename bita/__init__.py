"""bita-edge: compile and run BiTA-accelerated language models on edge devices."""

__version__ = "0.1.0"

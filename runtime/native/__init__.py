"""The library of native operators: its C++ sources, its build, and its loader."""

"""The library of native operators: its C++ sources, how it is built, found and loaded."""

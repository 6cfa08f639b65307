"""The command line `bita`: one module a command, `main` that parses and reports errors.

Modules import their work when they run, so that `bita --help` is fast and a missing extra is named
by the command that needs it.
"""

"""The command line `bita`: one module per command, and `main`, which parses and reports errors.

A command imports what it needs when it runs, so that `bita --help` is fast and a missing extra is
named by the command that needs it.
"""

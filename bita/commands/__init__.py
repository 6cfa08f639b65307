"""The subcommands of `bita`, one module each."""

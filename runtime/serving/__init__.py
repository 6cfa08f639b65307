"""`bita serve`: a server with OpenAI's HTTP interface."""

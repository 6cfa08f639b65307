"""Reading, generating, filtering and storing of prompts and answers. Importing loads no torch."""

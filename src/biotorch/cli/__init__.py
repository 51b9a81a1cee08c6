"""The command line: `biotorch run CONFIG [key.path=value ...]` and the other commands."""

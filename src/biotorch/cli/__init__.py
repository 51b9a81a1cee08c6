"""The command line: `biotorch run CONFIG [key.path=value ...]` and what goes with it."""

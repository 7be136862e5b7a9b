"""Arguments to commands, errors to exit codes; imports no torch."""

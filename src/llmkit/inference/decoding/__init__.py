"""The next tokens of a running batch: its KV cache, forward pass and prompt lookup."""

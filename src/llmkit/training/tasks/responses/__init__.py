"""Tasks that learn to write a text for another text."""

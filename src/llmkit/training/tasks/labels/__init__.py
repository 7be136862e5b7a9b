"""Tasks that learn labels: of texts, or of the words in them."""

"""Models measured on labelled rows: of texts, or of the words in them."""

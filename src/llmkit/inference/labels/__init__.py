"""Labels of texts and tags of words, whatever else is in the batch."""

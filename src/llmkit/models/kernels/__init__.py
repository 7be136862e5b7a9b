"""Replacements of torch operations: results that are equal, or differ as the file states, faster or
independent of the batch. Each can be deleted by itself; its first lines say how."""

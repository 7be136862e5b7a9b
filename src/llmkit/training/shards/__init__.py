"""Tensors of which each process holds a part: trained, saved and read without a whole copy."""

"""The thread that owns the models, and how it carries out the jobs of many requests together."""

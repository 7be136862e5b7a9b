"""Perplexity of texts, metrics of classifiers, comparisons with references, benchmarks."""

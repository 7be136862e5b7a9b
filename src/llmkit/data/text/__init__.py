"""Documents to files of tokens, by domain, with a held-out part."""

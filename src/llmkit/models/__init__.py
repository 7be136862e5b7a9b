"""Models and tokenizers: find, build, load and save."""

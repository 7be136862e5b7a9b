"""Models and tokenizers of transformers, which speaks through our console and not past it."""

from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

"""Models and tokenizers of transformers, which speaks through our console and not past it."""

import os
import sys

# What transformers reads as it is imported, which can wait: a model is looked for without it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

if "transformers" in sys.modules:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

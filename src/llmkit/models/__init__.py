"""Models and tokenizers of transformers, whose own log and progress bars are turned off."""

import os
import sys

# Read when transformers is imported; locating a model does not import it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

if "transformers" in sys.modules:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

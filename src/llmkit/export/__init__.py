"""Ship a finished model: its card, and its upload to the Hugging Face Hub."""

"""Ship a finished model: its card, its upload to the Hugging Face Hub, and other formats."""

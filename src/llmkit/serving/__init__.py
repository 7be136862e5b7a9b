"""Models behind HTTP: completions, chat and classification in the form of OpenAI's API."""

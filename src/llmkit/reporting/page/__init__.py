"""The page of `llmkit report`: what it shows of one run, and how it compares several."""

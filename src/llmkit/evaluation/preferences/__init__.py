"""Models that were trained on preferences, on pairs of a chosen and a rejected response."""

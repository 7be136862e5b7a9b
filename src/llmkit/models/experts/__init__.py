"""Domain experts of one seed: merged into a mixture of experts, an average or an ensemble."""

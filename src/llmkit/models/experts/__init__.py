"""Models with experts: domain experts of one seed and how they are merged, and the load-balancing
loss of mixtures of experts."""

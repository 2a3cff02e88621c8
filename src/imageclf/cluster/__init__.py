"""Training on several machines: the ranks of a training as actors of a Ray cluster."""

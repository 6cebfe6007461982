"""The user's journeys and the paper's experiments, on the public API alone."""

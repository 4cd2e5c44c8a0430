"""Times of a GPU that people measured themselves, against the prior."""

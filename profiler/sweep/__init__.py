"""A plan of several runs, on this machine or on a Ray cluster."""

"""Screen 1: the recordings."""

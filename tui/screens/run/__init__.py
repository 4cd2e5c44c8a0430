"""Screen 2: one run in time."""

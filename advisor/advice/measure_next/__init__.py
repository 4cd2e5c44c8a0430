"""What to measure next: runs of recorded engines, and short runs on a GPU that nobody measured."""

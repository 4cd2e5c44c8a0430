"""What a step takes: laws fitted to recordings, and their cost."""

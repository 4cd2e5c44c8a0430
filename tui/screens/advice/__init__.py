"""Screen 4: advice for a budget."""

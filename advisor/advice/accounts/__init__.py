"""What is read off an advisor beside its recommendation."""

"""What other policies would have answered, from the recorded samples."""

"""Step times of GPUs that were never measured, from published tables."""

"""What is read while an engine runs: steps, kernels, power."""

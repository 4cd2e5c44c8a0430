"""What is read of the machine while an engine runs: power."""

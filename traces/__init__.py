"""What was measured: the recording, its tables and its formats."""

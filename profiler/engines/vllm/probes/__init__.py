"""What is read of a vLLM engine while it runs: steps, their drafting, kernel windows."""

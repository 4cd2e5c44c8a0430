"""vLLM's scheduler and cache as one compiled event loop."""

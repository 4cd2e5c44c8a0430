"""What speculative decoding accepted, and what prompt lookup would have drafted."""

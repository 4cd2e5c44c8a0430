"""What a replay is asked and what it gives, alike for `replay` and `advise`."""

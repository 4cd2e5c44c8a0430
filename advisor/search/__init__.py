"""All candidates for a budget: their work, their metrics and the few that are replayed."""

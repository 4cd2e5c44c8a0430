"""What a model costs, from its config and its weights."""

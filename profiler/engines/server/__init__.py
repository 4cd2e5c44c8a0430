"""A server that speaks OpenAI's API, and several of them."""

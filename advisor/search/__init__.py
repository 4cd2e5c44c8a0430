"""All candidates, what they take, and their metrics: in closed form, and replayed."""

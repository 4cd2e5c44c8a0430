"""Batches that are sent at once, as rollouts and evaluations are."""

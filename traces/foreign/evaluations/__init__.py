"""Samples of evaluations: lm-eval, Inspect, plain JSON Lines."""

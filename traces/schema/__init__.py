"""The words that all parts speak: engine, policy, budget, advice, estimate."""

"""What it means: regressions, replay, search and advice."""

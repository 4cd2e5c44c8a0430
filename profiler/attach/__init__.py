"""A running server is watched from outside: its pages, spans, steps and GPUs."""

"""The bundled reasoners: a task with an exact verifier, and three tiny models trained on it."""

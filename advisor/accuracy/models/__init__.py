"""Laws of answers: how often a problem is solved, and which mistakes it gets."""

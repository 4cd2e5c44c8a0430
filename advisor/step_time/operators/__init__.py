"""Tables of measured operator times, and the steps they add up to."""

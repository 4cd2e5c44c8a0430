"""Forward-pass metrics (FPM), one record an iteration and rank, to rows of steps."""

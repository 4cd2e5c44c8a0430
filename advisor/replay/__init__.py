"""A recorded load on an engine that was never run."""

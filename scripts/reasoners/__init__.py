"""Trains and evaluates the bundled models; not a part of the package."""

"""Regressions that the advice is built on."""

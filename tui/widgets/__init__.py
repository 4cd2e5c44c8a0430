"""Widgets that take rows."""

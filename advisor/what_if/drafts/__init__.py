"""Drafts that were not recorded: of another length, or by another method."""

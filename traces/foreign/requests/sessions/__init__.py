"""Formats whose requests are turns of sessions: coding agents and Bailian's chats."""

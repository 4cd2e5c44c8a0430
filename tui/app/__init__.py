"""The terminal app: its keys and themes, and the app in a browser."""

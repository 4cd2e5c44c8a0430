"""The four screens of the terminal app."""

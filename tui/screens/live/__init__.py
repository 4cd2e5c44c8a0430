"""Screen 3: a server, watched."""

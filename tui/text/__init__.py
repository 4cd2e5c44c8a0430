"""Lines of text for terminals: formats, show, replay, advice, live."""

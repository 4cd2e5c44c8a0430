"""What one kind of operation takes on a GPU: from its table, or by a stated rule."""

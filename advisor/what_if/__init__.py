"""One run under another configuration, with intervals."""

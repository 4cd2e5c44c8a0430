"""The compiled engine of the replay: an event loop over scheduler, KV cache and stop rules."""

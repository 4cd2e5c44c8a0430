"""One recorded run: its loop, samples in flight, spans and provenance."""

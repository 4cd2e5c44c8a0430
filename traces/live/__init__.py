"""From a server's /metrics page and spans to numbers and a verdict."""

"""What servers send here: spans and steps, over HTTP and gRPC."""

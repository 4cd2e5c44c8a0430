"""The part that runs inside a vLLM server and sends its steps."""

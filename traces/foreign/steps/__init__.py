"""Files of engine steps: forward-pass metrics, and the cases of `vllm bench forward`."""

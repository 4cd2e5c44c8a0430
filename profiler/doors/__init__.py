"""What leaves this process and who comes to it: each try bounded, each listener guarded."""

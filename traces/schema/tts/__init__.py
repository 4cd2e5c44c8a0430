"""Test-time scaling: methods, when each stops, and policies made of them."""

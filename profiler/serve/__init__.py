"""An OpenAI-compatible endpoint that answers with a policy, in front of an engine's own."""

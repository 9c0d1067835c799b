"""What an observer can learn. Attacks read observations, never the engine's insides, never the truth."""

"""Attacks on what secure aggregation leaves to be seen: sums, and who is in them."""

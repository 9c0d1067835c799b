"""The federation: data, models, lanes, rounds, and who sees what."""

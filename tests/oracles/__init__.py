"""Known answers that tests compare with."""

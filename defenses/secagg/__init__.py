"""Secure aggregation: the server learns the sum of the survivors' vectors and, of each one, nothing else."""

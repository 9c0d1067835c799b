"""Federated optimisation: what a client does with the model it is sent, and what the server does with the sum."""

"""Hydra's configuration groups, one folder a room."""

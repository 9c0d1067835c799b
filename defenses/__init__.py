"""Defences change updates, and say what they guarantee, to whom."""

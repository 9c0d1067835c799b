"""Published tables and claims, measured again: a file each, named after its source.

A module here has one subclass of `base.Reproduction`, which states the protocol, the published numbers and three
budgets; `python -m experiments.reproduce NAME --budget cpu` measures it and writes results/reproduce/NAME/.
"""

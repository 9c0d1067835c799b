"""Studies that are no leakage sweep: each its own points, one figure and one table. `base` is what a study is."""

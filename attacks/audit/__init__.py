"""Audits: what an attack's success proves about ε, and with what confidence.

- `outcomes`: what every audit returns; `checks`: what every audit refuses.
- `two_world`, with the thresholds of `thresholds` and `bands`: independent runs with the canary and without.
- `gaussian`: the same for mechanisms whose trade-off is Gaussian.
- `sequential`: pairs of runs, looked at after each.
- `one_run`, `one_run_fdp`: one run with many canaries that were each included by a fair coin.
- `one_shot`: client canaries of random direction, all in one run; an estimate, and a bound for one Gaussian release.

A bound above the accountant's ε means that the accounting, the mechanism or the audit is broken.
"""

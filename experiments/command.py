"""The command `mirage`: `python -m experiments.run`, for which a shell completes experiments, groups and fields.

`eval "$(mirage -sc install=bash)"` in ~/.bashrc switches that on, as Hydra does it; it completes commands by their own
name, so not `python -m`. A shell asks at every press of the key, and gets its answer without torch being loaded.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from experiments.terminal import one_line_errors
from fl_core.errors import InputError


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def complete(_: DictConfig) -> None:
    """Hydra answers the shell before it would call this."""
    raise AssertionError("completion runs nothing")


def main() -> None:
    if {"-sc", "--shell-completion"} & set(sys.argv):
        with one_line_errors():
            try:
                complete()
            except (KeyError, ValueError):  # as Hydra greets what it cannot read
                raise InputError(
                    'completion takes install=bash (or fish, zsh) or uninstall=bash, as in eval "$(mirage -sc '
                    'install=bash)"; query= is for the shell itself'
                ) from None
        return
    from experiments import run

    run.main()

"""A malicious server: it plays every round as it should, but changes the model that it sends out.

The round goes on from there. Clients train on what they are sent, and the server's next model is what it had sent plus
what they make of it, as in the active attacks of Nasr et al. 2019 (section II-C): for federated averaging that is the
average of the models that come back. A replica in which nobody takes part keeps the model it had.
"""

from __future__ import annotations

from typing import Protocol

from fl_core.errors import InputError
from fl_core.optimizers import Tree


class Tampering(Protocol):
    """What a malicious server changes of the model that it sends out.

    `tamper` is a function of its arguments alone, so that a resumed run is the uninterrupted one, and of each replica
    by itself, so that a shard of them is, too.
    """

    def tamper(self, round: int, sent: Tree) -> Tree:
        """The variables of `sent` [replicas, ...] that change, in their shapes; none in an honest round."""
        ...


def tampered(tampering: Tampering, round: int, model: Tree, sent: Tree) -> Tree:
    """What changes of the `model` that goes out in `sent`.

    Raises InputError for changes of what is no variable of the model, or of another shape.
    """
    changed = tampering.tamper(round, dict(sent))
    for name, value in changed.items():
        if name not in model or name not in sent or value.shape != sent[name].shape:
            raise InputError(
                f"tampering changes {name} {tuple(value.shape)}; it may change the variables that are sent, and no "
                f"shape: {', '.join(f'{own} {tuple(it.shape)}' for own, it in sent.items() if own in model)}"
            )
    return {name: value.detach().to(sent[name]) for name, value in changed.items()}

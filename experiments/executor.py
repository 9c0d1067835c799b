"""Where a cell's tasks run: in processes of this machine or on a Ray cluster. joblib runs them either way.

A task is named by plain values, skips itself where its file exists, and writes that file whole or not at all. So the
tasks of a worker that died are simply called again, and no result depends on where or how often they ran.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from fl_core.errors import InputError, check_number

REACH_SECONDS = 5
"""How long a cluster's address may take to answer; Ray itself would try for minutes."""

Run = Callable[[Iterable[Any]], Any]
"""Takes calls made by `joblib.delayed`, runs them side by side, and returns when all are done."""


@dataclass(frozen=True, kw_only=True)
class Executor(ABC):
    """`retries`: how often a cell's work is taken up again after one of its workers died."""

    retries: int

    def __post_init__(self) -> None:
        check_number("executor.retries", self.retries, minimum=0, integer=True)

    @abstractmethod
    def connect(self) -> None:
        """Get in touch with what runs the tasks; InputError where that cannot be done. May be called again."""

    @abstractmethod
    def died(self) -> tuple[type[Exception], ...]:
        """What joblib raises where a worker died, as opposed to a task that failed."""

    @abstractmethod
    def workers(self, wanted: int | str, device: torch.device) -> int:
        """How many workers a cell gets; `wanted` is the field `workers`, a number or `auto`."""

    @abstractmethod
    def parallel(self, workers: int) -> Any:
        """A context manager that starts the workers and gives what runs calls on them (`Run`)."""

    def persist(self, work: Callable[[Run], object], *, wanted: int | str, device: torch.device, name: str) -> int:
        """Do `work`, and again after a worker died, up to `retries` times; returns the number of workers.

        Raises InputError where workers died in every try. `name` is what the work is called at the terminal.
        """
        for left in reversed(range(self.retries + 1)):
            workers = self.workers(wanted, device)
            try:
                with self.parallel(workers) as run:
                    work(run)
                return workers
            except self.died() as error:
                if left == 0:
                    raise InputError(
                        f"a worker died in each of {self.retries + 1} tries, most often for want of memory; "
                        "lower workers or shard, or raise executor.retries"
                    ) from error
                tqdm.write(
                    f"mirage: a worker of {name} died; going on from what is on disk (executor.retries: {left} left)",
                    file=sys.stderr,
                )
        raise AssertionError("the last try returns or raises")


@dataclass(frozen=True, kw_only=True)
class Processes(Executor):
    """Processes of this machine, through joblib's own backend."""

    def connect(self) -> None:
        """Nothing to reach: joblib starts the processes."""

    def died(self) -> tuple[type[Exception], ...]:
        return (TerminatedWorkerError,)

    def workers(self, wanted: int | str, device: torch.device) -> int:
        """One a core on a CPU; one in all on a GPU, which the lanes fill by themselves."""
        if isinstance(wanted, int):
            return wanted
        return 1 if device.type == "cuda" else int(joblib.cpu_count())

    @contextmanager
    def parallel(self, workers: int) -> Iterator[Run]:
        with joblib.Parallel(n_jobs=workers) as run:
            yield run


@dataclass(frozen=True, kw_only=True)
class Ray(Executor):
    """Workers of a Ray cluster, through Ray's joblib backend.

    Every node sees this folder under the same path (a shared file system) and has the same Mirage installed. `cpus` and
    `gpus` are what a worker reserves; `address` is `auto` or `host:port`.
    """

    address: str
    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("executor.cpus", self.cpus, above=0)
        check_number("executor.gpus", self.gpus, minimum=0)
        host, _, port = str(self.address).rpartition(":")
        if self.address != "auto" and not (host and "/" not in host and port.isdigit() and int(port) < 1 << 16):
            raise InputError(
                f"executor.address is {self.address!r}; it must be auto or host:port, as `ray start --head` prints it"
            )

    def connect(self) -> None:
        # A worker's death is told in one line of our own; Ray's paragraph about it has no other switch.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        try:
            import ray
        except ImportError:
            raise InputError("executor=ray needs Ray, which is not installed: pip install 'mirage-fl[ray]'") from None
        if ray.is_initialized():
            return
        try:
            if self.address != "auto":
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            brief = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"no Ray cluster can be used at executor.address={self.address} ({brief}); start one with "
                "`ray start --head`, run Mirage on one of its nodes, and give the address that it prints"
            ) from error

    def died(self) -> tuple[type[Exception], ...]:
        from ray import exceptions

        return (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
        )

    def workers(self, wanted: int | str, device: torch.device) -> int:
        """As many as the cluster has room for. InputError where a worker could not do its work there."""
        import ray

        if device.type == "cuda" and self.gpus == 0:
            raise InputError(
                "device is cuda, but executor.gpus is 0; give every Ray worker a GPU or a share of one, as in "
                "executor.gpus=0.5, or set device=cpu"
            )
        has = ray.cluster_resources()
        room = int(has.get("CPU", 0) / self.cpus)
        if self.gpus:
            room = min(room, int(has.get("GPU", 0) / self.gpus))
        asked = room if wanted == "auto" else int(wanted)
        # joblib runs a single worker's tasks in the calling process, which need not have the cluster's GPU.
        if not 2 <= asked <= room:
            raise InputError(
                f"workers is {wanted}, and the Ray cluster has room for {room} with executor.cpus={self.cpus:g} and "
                f"executor.gpus={self.gpus:g} each; it must be at least 2 and within that room, or use "
                "executor=processes"
            )
        return asked

    @contextmanager
    def parallel(self, workers: int) -> Iterator[Run]:
        from ray.util.joblib import register_ray

        register_ray()
        here = os.getcwd()
        reserved = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        with joblib.Parallel(n_jobs=workers, backend="ray", ray_remote_args=reserved) as run:
            yield lambda calls: run(joblib.delayed(_in_folder)(here, call, args) for call, args, _ in calls)


def _in_folder(folder: str, call: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Make a call in `folder`, so that relative paths mean on every node what they mean where the sweep was started."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"the Ray worker on {socket.gethostname()} cannot use {folder} ({error.strerror}); start the sweep in a "
            "folder that all nodes share"
        ) from None
    call(*args)

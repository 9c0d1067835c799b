"""Runs on disk: done once, by whoever comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from experiments import store
from fl_core.checkpoint import write_text
from fl_core.errors import InputError


def test_of_several_that_wait_for_one_run_one_does_it_and_none_fails(tmp_path: Path):
    final = tmp_path / "runs" / "one"
    begun, done, failed = threading.Event(), [], []

    def work(pieces: Path) -> None:
        begun.set()
        threading.Event().wait(0.2)  # the others come to the lock meanwhile
        done.append(1)
        write_text(pieces / "sealed" / "record.json", "{}")
        store.finish(pieces / "sealed", final, {"hash": "one"})

    def call() -> None:
        try:
            store.run_once(final, work, True, ["hash"])
        except Exception as error:
            failed.append(error)

    callers = [threading.Thread(target=call) for _ in range(6)]
    callers[0].start()
    begun.wait()
    for caller in callers[1:]:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed
    assert len(done) == 1
    assert not store.partial(final).exists()


def test_a_run_that_another_process_is_at_is_refused_unless_one_waits(tmp_path: Path):
    final = tmp_path / "runs" / "one"

    def work(pieces: Path) -> None:
        with pytest.raises(InputError, match="another process is at this run"):
            store.run_once(final, lambda _: None, False, [])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run_once(final, work, False, [])
    assert store.partial(final).exists(), "what was done stays for the next call"

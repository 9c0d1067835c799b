"""How Mirage speaks to the person at the terminal: one line an error, and exit codes that mean something.

0 done; 1 a fault of Mirage's own; 2 an input that cannot be used; 3 cells of a sweep failed, the others are done and
reported; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

from fl_core.errors import InputError

# Hydra otherwise prints several lines of its own and exits with 1.
os.environ["HYDRA_FULL_ERROR"] = "1"

CELL_FAILED = 3
NULL_GROUP = "Config group override must be"
"""How Hydra's error begins, a plain ValueError, where a group is set to null."""
POLL_SECONDS = 0.5


class _Help(argparse.RawDescriptionHelpFormatter):
    """The text above the options as it stands, and each option's default behind its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help or ""
        default = action.default
        shown = default is not None and default is not False and default not in ("", argparse.SUPPRESS)
        return f"{told} (default: {_as_typed(action.default)})" if shown else told


def _as_typed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """The options of `python -m MODULE`: `--help` shows the module's docstring, a bad option is one line and code 2."""

    def __init__(self, module: str, doc: str | None) -> None:
        super().__init__(prog=f"python -m {module}", description=doc, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and leave with exit code 2."""
        say(f"{message}; --help lists what is allowed")
        sys.exit(2)


def command() -> str:
    """The command line as the user would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else "experiments.run"
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit code 2; with `debug`, show the traceback too."""
    try:
        yield
    except KeyboardInterrupt:
        _leave("interrupted; the same command goes on from here", 130, debug)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        _leave(_explain(error), 2, debug)
    except OSError as error:
        _leave(one_line(error), 2, debug)
    except ValueError as error:
        if not str(error).startswith(NULL_GROUP):
            raise
        _leave(_explain(error), 2, debug)


def _leave(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(line)
    sys.exit(code)


def say(line: str) -> None:
    """One line on stderr, with the name of the program."""
    print(f"mirage: {' '.join(line.split())}", file=sys.stderr)


@contextmanager
def meanwhile(work: Callable[[], None], seconds: float = POLL_SECONDS) -> Iterator[None]:
    """Do some `work` again and again while the block runs, `seconds` apart; never after it has ended."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            work()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def progress(total: int, done: Callable[[], int], name: str, unit: str, afterwards: str = "") -> Iterator[None]:
    """A bar of what is `done` of `total`, which workers tell by files; nothing where the output is no terminal.

    `afterwards` names the work that follows the last one.
    """
    if not sys.stderr.isatty():
        yield
        return
    with tqdm(total=total, desc=name, unit=unit, leave=False) as bar:

        def show() -> None:
            bar.update(done() - bar.n)
            if bar.n == bar.total:
                bar.set_postfix_str(afterwards)

        with meanwhile(show):
            yield


def one_line(error: Exception) -> str:
    """What went wrong; the kind of error too where it was not written for the person at the terminal."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _explain(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        name = error.full_key or "a field"
        return f"{name} has no value; give it on the command line, as in {name}=..."
    overrides = sys.argv[1:]
    try:
        return _first_bad_override(overrides) or str(error)
    except (HydraException, OmegaConfBaseException):
        return str(error)


def _first_bad_override(overrides: list[str]) -> str:
    """Add the overrides one at a time, groups first, and explain the first that the configuration does not take.

    Hydra reports a bad field inside a sweep as an ambiguous value, and a bad group as a page of text.
    """
    if not GlobalHydra.instance().is_initialized():
        initialize_config_module("conf", version_base="1.3")
    parser = OverridesParser.create()
    ordered = sorted(overrides, key=lambda one: "." in one.split("=")[0])
    taken: list[str] = []
    for one in ordered:
        if "=" not in one.lstrip("="):
            return f"{one!r} is not of the form field=value"
        name, value = one.split("=", 1)
        try:
            parsed = parser.parse_override(one)
        except HydraException:
            return f"the value of {name} cannot be read: {value!r}; quote it if it holds special characters"
        values = list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else [value]
        here = compose("config", overrides=taken)
        for each in values:
            try:
                compose("config", overrides=[*taken, f"{name}={each}"])
            except (HydraException, OmegaConfBaseException) as error:
                return _unknown(name, each, here, str(error))
            except ValueError:
                options = GlobalHydra.instance().config_loader().get_group_options(name)
                return f"{name} is {each}, but it is a group; choose {', '.join(options)}"
        taken.append(f"{name}={values[0]}")
    return ""


def _unknown(name: str, value: str, here: DictConfig, text: str) -> str:
    """What stands at the place of a field or a group's option that is not there."""
    if "Could not override" not in text:
        options = GlobalHydra.instance().config_loader().get_group_options(name)
        if name == "hydra/launcher" and value.startswith("submitit_") and "submitit_local" not in options:
            return f"{name}={value} needs Hydra's submitit launcher: pip install 'mirage-fl[slurm]'"
        if options:
            return choose(f"{name} has no option {value!r}", value, options)
        return text
    parent, _, leaf = name.rpartition(".")
    place = OmegaConf.select(here, parent) if parent else here
    if not isinstance(place, DictConfig):
        return f"there is no option {name}: {parent} has no fields"
    fields = sorted(str(key) for key in place if key != "_target_")
    if not fields:
        others = GlobalHydra.instance().config_loader().get_group_options(parent)
        return f"there is no option {name}: this {parent} takes none; choose {parent}= one of {', '.join(others)}"
    return choose(f"there is no option {name}", leaf, fields)


def choose(problem: str, given: str, allowed: list[str]) -> str:
    """The problem, what is allowed, and the nearest of that."""
    near = difflib.get_close_matches(given, allowed, n=1)
    return f"{problem}; allowed: {', '.join(allowed)}" + (f"; did you mean {near[0]}?" if near else "")

"""How Mirage speaks to the person at the terminal: one line an error, and exit codes that mean something.

0 done; 1 a fault of Mirage's own; 2 an input that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fl_core.errors import InputError

# Hydra otherwise prints several lines of its own and exits with 1.
os.environ["HYDRA_FULL_ERROR"] = "1"


def command() -> str:
    """The command line as the user would type it again."""
    module = "experiments.run"
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        module = main.__spec__.name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


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
        _leave(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}", 2, debug)


def _leave(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"mirage: {' '.join(line.split())}", file=sys.stderr)
    # Leave without waiting for worker processes that are still busy with a cell nobody wants now.
    sys.exit(code)


def _explain(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        name = re.search(r"Missing mandatory value: (\S+)", str(error))
        return f"{name.group(1) if name else 'a field'} has no value; give it on the command line, as in {name.group(1) if name else 'field'}=..."
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_field(unknown.group(1), text)
    group = re.search(r"Could not find '([^']+)'", text)
    if group:
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return (
            f"there is no {group.group(1)}; allowed: {', '.join(options)}"
            if options
            else f"there is no {group.group(1)}"
        )
    return text


def _unknown_field(name: str, text: str) -> str:
    """An unknown field of the configuration, with what stands at that place instead."""
    parent, _, leaf = name.rpartition(".")
    allowed: list[str] = []
    if GlobalHydra.instance().is_initialized():
        groups = [one for one in sys.argv[1:] if re.fullmatch(r"\w+=\w+", one) and one.split("=")[0] != leaf]
        try:
            here = (
                OmegaConf.select(compose("config", overrides=groups), parent) if parent else compose("config")
            )
        except (HydraException, OmegaConfBaseException):
            here = None
        if isinstance(here, DictConfig):
            allowed = sorted(str(key) for key in here if key != "_target_")
    if not allowed:
        return f"{name} cannot be set: {text}"
    near = difflib.get_close_matches(leaf, allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no option {name}; {parent or 'the configuration'} has {', '.join(allowed)}{hint}"

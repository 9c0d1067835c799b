"""The command `mirage` and what a shell is offered when it completes one, through Hydra's own script."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from experiments import command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`mirage` on the PATH made as an installer does of pyproject's entry, and a working folder far from here."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["mirage"]
    module, function = entry.split(":")
    program = tmp_path / "bin" / "mirage"
    program.parent.mkdir()
    lines = [f"#!{sys.executable}", "import sys", f"from {module} import {function}", f"sys.exit({function}())", ""]
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line: str) -> list[str]:
    """What bash offers after the key is pressed at the end of `line`."""
    words = len(line.split(" ")) - 1
    script = (
        'eval "$(mirage -sc install=bash)"; complete -p mirage >&2; '
        f'COMP_LINE="{line}" COMP_POINT={len(line)} COMP_CWORD={words}; '
        'hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "-F hydra_bash_completion mirage" in done.stderr  # it is mirage that is completed
    return done.stdout.split()


def test_bash_offers_experiments_options_and_fields(shell: Path):
    experiments = {f"experiment={file.stem}" for file in (ROOT / "conf/experiment").glob("*.yaml")}
    assert set(offered("mirage experiment=")) == experiments
    assert {"defense=dp_sgd", "defense=secagg"} <= set(offered("mirage rounds=3 defense="))
    assert offered("mirage defense=dp_sgd defense.eps") == ["defense.epsilon="]


def test_a_shell_is_answered_without_loading_torch(shell: Path):
    # which takes seconds at every press of the key
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); import experiments.command as c"
    program = f"{code}; sys.argv = ['mirage', '-sc', 'query=bash']; c.main()"
    around = os.environ | {"COMP_LINE": "mirage experiment=leakage_vs"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=around)
    assert done.stdout.split() == ["experiment=leakage_vs_epsilon", "False"]


@pytest.mark.parametrize("asked", ["-sc", "-sc install=tcsh", "--shell-completion query=bash"])
def test_a_completion_that_is_none_is_one_line_with_exit_code_2(asked: str, shell: Path):
    done = subprocess.run(["mirage", *asked.split()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mirage: ")
    assert done.stderr.count("\n") == 1


def test_mirage_is_experiments_run(here: Path, monkeypatch, capsys):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["mirage", "rouns=3"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    GlobalHydra.instance().clear()
    assert stopped.value.code == 2
    assert "did you mean rounds?" in capsys.readouterr().err

"""What a person gets for a command that cannot work: one line, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.experiments.conftest import SWEEP, TINY, refusal


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rounds=x"], "rounds is 'x'; it must be a whole number at least 1"),
        (["rouns=3"], "did you mean rounds?"),
        (["defense=dp_sgd", "defense.epslion=3"], "did you mean epsilon?"),
        (["defense.epsilon=3"], "choose defense= one of clip, composed, dp_fedavg"),
        (["defense=dp_sdg"], "did you mean dp_sgd?"),
        (["experiment=leakage"], "allowed: alice_and_bob, audit_canaries, "),
        (["defense=dp_sgd", "defense.epsilon=-1"], "it must be a number above 0 or inf"),
        (["defense=dp_sgd", "defense.epsilon=1e9"], "500"),
        (["defense=dp_sgd", "defense.delta=0.1"], "defense.delta is 0.1"),
        (["defense=dp_sgd", "defense.clip_norm=0"], "defense.clip_norm is 0"),
        (
            ["defense=dp_sgd", "defense.noise_multiplier=0"],
            "defense.noise_multiplier is 0; it must be a number above 0",
        ),
        (["defense=dp_sgd", "defense.clipping=soft"], "defense.clipping is 'soft'; allowed: adaptive, flat, per_layer"),
        (["defense=dp_sgd", "against=server", "defense.epsilon=inf"], "defense=dp_sgd guarantees one example nothing"),
        (["defense=dp_fedavg", "defense.delta=0.3"], "below one over the number of clients, 1/5"),
        (["defense=dp_fedavg", "clients=50", "against=server"], "the server adds the noise itself"),
        (["defense=dp_fedavg", "clients=50", "aggregator=median"], "set aggregator=mean"),
        (["defense=dp_fedavg_shares", "clients=50", "participation=poisson"], "a fixed size"),
        (["defense=composed", "defense.defenses.clip.unit=example"], "only one may clip an example's gradient"),
        (["defense=secagg"], "set attack.victims=0"),
        (["defense=secagg", "attack.victims=0", "defense.bits=3"], "too few for a sum over 5 clients; it must be at"),
        (["defense=secagg", "attack.victims=0", "defense.threshold=2"], "defense.threshold is 2; it must be a number"),
        (["defense=secagg", "attack.victims=0", "defense.graph=ring"], "allowed: complete, sparse"),
        (["defense=secagg", "attack.victims=0", "aggregator=krum"], "set aggregator=mean"),
        (
            ["schedule@client_schedule=cosine", "rounds=3", "client_schedule.warmup=3"],
            "warmup is 3, but there are 3",
        ),
        (
            ["schedule@server_schedule=cosine", "rounds=3", "server_schedule.warmup=9"],
            "warmup is 9, but there are 3",
        ),
        (["defense=secagg", "attack.victims=0", "fleet=fedbuff"], "choose a synchronous fleet"),
        (["defense=secagg", "attack.victims=0", "clients=1"], "a masked sum needs 2; ask more clients"),
        (["defense=secagg", "attack.victims=0", "against=server"], "masks alone give no ε"),
        (["defense=secagg_shares", "attack.victims=0", "fleet=devices"], "needs every client's share of the noise"),
        (["clients=5000"], "only 1438 examples"),
        (["sampler.batch_size=0"], "sampler.batch_size is 0"),
        (["sampler.batch_size=900"], "no client has more than"),
        (["replicas=2"], "replicas is 2"),
        (["membership=1"], "membership is 1"),
        (["about=5"], "about is 5"),
        (["attack.victims=2000"], "attack.victims is 2000"),
        (["attack.audit_with=[lora]"], "did you mean 'lira'?"),
        (["backend=gpu"], "backend is 'gpu'; allowed: auto, loop, vmap"),
        (["device=cpux"], "device is 'cpux'; allowed: auto, cpu, cuda"),
        (["workers=0"], "workers"),
        (["data.classes=[1,77]"], "data.classes names 77"),
        (["data=parquet"], "data.path has no value"),
        (["data=parquet", "data.path=missing.parquet"], "missing.parquet is not a file"),
        (["data=folder", "data.path=missing"], "missing is not a folder"),
        (["data=torchvision", "data.path=missing"], "data.download=true"),
        (["augmentation=flip_and_shift", "augmentation.shift=8"], "8x8 and can be moved by 7 pixels at most"),
        (["precision=half"], "precision is 'half'; allowed: bfloat16, float32"),
        (["augmentation=flip"], "flip_and_shift, none"),
        (["nonsense"], "not of the form field=value"),
        ([*SWEEP[:-1], "defense.epsilon=2,-1"], "defense.epsilon is -1"),
        (["name="], "name is ''; it is a folder under results/"),
        (["name=../x"], "name is '../x'; it is a folder under results/"),
        (["name=runs"], "choose another name"),
        (["title=null"], "title is None; it must be text"),
        (["save_rounds=yes"], "save_rounds is 'yes'; allowed: true, false"),
        (["client_names=[Alice]"], "it must be a list of 5 names"),
        (["tamper=1"], "tamper is 1, but it has fields of its own"),
        (["signals=server"], "as in signals.FIELD=..."),
        (["signals.rounds=[0,0]"], "with a round twice"),
        (["signals.queries=1000"], "lower signals.queries"),
        (["attack.membership.lira=3"], "take it out with ~attack.membership.lira"),
        (["+attack.membership.x={a:3}"], "describes nothing"),
        (["+attack.reconstruction.foo=1"], "has no option foo"),
        (["+data.foo=1"], "has no option foo"),
        (["client_schedule=cosine"], "schedule@client_schedule=..."),
        (["model=custom", "model.factory=torch.nn:Identity", "model.options=3"], "it must be arguments by name"),
        (["algorithm=fedbn", "algorithm.local_layers=3"], "it must be a list of patterns"),
        (["aggregator=krum", "aggregator.byzantine=9"], "needs at least 21"),
        (["defense=composed", "defense.defenses=3"], "give defences by name"),
        (["defense=null"], "defense is null, but it is a group; choose clip, "),
        (["~rounds"], "rounds cannot be taken out"),
        (["+foo=3"], "there is no option foo"),
        (["++attack.fprr=3"], "did you mean fpr?"),
        (["--foo"], "unrecognized arguments: --foo"),
        (["=3"], "not of the form field=value"),
        (["partition=iid,foo", "--multirun"], "partition has no option 'foo'"),
        (["experiment=secagg_dropout", "study.survivors=3"], "study.survivors is 3; it must be a list"),
        (["experiment=secagg_dropout", "name=../x"], "name is '../x'"),
        ([*SWEEP, "attack.fprr=0.1"], "did you mean fpr?"),
        (["hydra/launcher=submitit_slurm"], "starts the cells of a sweep, and this is none; add --multirun"),
        (["fleet=devices", "fleet.deadline=1e-9"], "fleet.deadline is 1e-09 s, and no client's update arrives by then"),
    ],
)
def test_a_bad_input_is_one_line_with_exit_code_2_and_nothing_written(arguments, says, here, mirage, capsys):
    assert says in refusal(capsys, mirage, *arguments)
    assert not list(here.iterdir())


def test_a_broken_data_file_is_named(here: Path, mirage, capsys):
    Path("broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(SystemExit):
        mirage("data=parquet", "data.path=broken.parquet")
    assert "broken.parquet is not a readable parquet file" in capsys.readouterr().err
    rows = pa.table({"image": [{"bytes": b"no picture", "path": None}] * 20, "label": [0, 1] * 10})
    pq.write_table(rows, "pictures.parquet")
    with pytest.raises(SystemExit):
        mirage("data=parquet", "data.path=pictures.parquet")
    assert "pictures.parquet, row" in capsys.readouterr().err


def test_debug_shows_the_traceback(here, mirage, capsys):
    with pytest.raises(SystemExit) as stopped:
        mirage("clients=5000", "debug=true")
    assert stopped.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fixed_noise_multiplier_gives_the_epsilon_that_follows_from_it(here: Path, mirage, capsys):
    mirage(*TINY, "defense=dp_sgd", "defense.noise_multiplier=2", "attack.victims=0", "workers=1", "backend=vmap")
    printed = capsys.readouterr()
    assert printed.err == ""
    (line,) = [line for line in printed.out.splitlines() if " 2.000 " in line]
    asked, accounted = line.split()[:2]
    assert float(asked) == pytest.approx(float(accounted), rel=1e-3)
    assert float(accounted) < 5
    assert not (here / "results/single/reconstructions.png").exists()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (
            "secagg",
            "Against released_model, participant, secure_server, server and malicious_server: "
            "one client has no guarantee (ε = ∞)",
        ),
        ("secagg_shares", "summed under masks by a server that follows the protocol and that no client helps"),
    ],
)
def test_a_run_under_masks_says_in_its_table_what_is_guaranteed(defense, says, here: Path, mirage, capsys):
    mirage(*TINY, f"defense={defense}", "attack.victims=0", "workers=1", "backend=vmap")
    assert capsys.readouterr().err == ""
    assert says in (here / "results/single/table.md").read_text()


def test_a_single_run_writes_its_table(here: Path, mirage, capsys):
    mirage(*TINY, "workers=1", "backend=vmap", "name=mine")
    assert "results/mine/table.md" in capsys.readouterr().out
    assert (here / "results/mine/leakage_vs_epsilon.png").stat().st_size > 10_000

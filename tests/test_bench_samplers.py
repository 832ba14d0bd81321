"""The benchmark of samplers, tiny: which rows it has, that they are what they say, and what it writes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import samplers

from festina import FestinaError
from festina.samplers import KINDS
from festina.samplers.times import GRIDS

TINY = ["--calls", "2", "4", "--images", "2", "--fit-images", "2", "--teacher-steps", "6", "--reference-steps", "8"]


def test_rows_of_samplers(tmp_path, capsys):
    chosen = [samplers.OWN, "data_released 2", "data 1", "data 2 on karras", "data 2 on GITS", "OLSS"]
    out, picture = tmp_path / "samplers.json", tmp_path / "samplers.png"
    found = samplers.main([*TINY, "--samplers", *chosen, "--out", str(out), "--png", str(picture)])
    rows = {(row["sampler"], row["calls"]): row for row in found["rows"]}
    assert list(rows) == [(name, calls) for name in chosen for calls in (2, 4)]
    # The pipeline's own scheduler is DPM-Solver++ as released.
    for calls in (2, 4):
        own, released = (rows[name, calls] for name in chosen[:2])
        assert released["reward"] == pytest.approx(own["reward"], abs=1e-3)
        assert released["psnr"] == pytest.approx(own["psnr"], abs=0.01)
    assert rows["data 1", 4]["psnr"] != pytest.approx(rows[samplers.OWN, 4]["psnr"], abs=0.01)
    assert rows[samplers.OWN, 4]["psnr"] > rows[samplers.OWN, 2]["psnr"]
    saved = json.loads(out.read_text())
    assert saved["benchmark"] == "samplers"
    assert saved["figures"] == found
    assert saved["settings"]["teacher_steps"] == 6
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n| ") == 1 + len(rows)


def test_every_solver_and_grid_has_a_row(tmp_path):
    with pytest.raises(FestinaError, match="no sampler is called data 9") as refused:
        samplers.main([*TINY, "--samplers", "data 9"])
    listed = str(refused.value).rstrip(".").split("there are ")[1].split(", ")
    grids = [f"data 2 on {grid}" for grid in GRIDS if grid != "align_your_steps"]
    # Nodes are of the model they were found for.
    grids.append("data 2 on align_your_steps of SD 1.5")
    solvers = [f"{name} {order}" for name, kind in KINDS.items() for order in range(2, kind.highest + 1)]
    assert {"adams_bashforth 4", "deis_time 4"} <= set(solvers)
    wanted = {*solvers, *grids, "data 1", samplers.ON_GITS, samplers.OLSS, samplers.OWN}
    assert {name.removesuffix(" with corrector") for name in listed} == wanted


def test_what_is_refused():
    with pytest.raises(FestinaError, match="8 steps and a sampler 9 calls"):
        samplers.main([*TINY, "--calls", "9"])
    with pytest.raises(FestinaError, match="learn from 6 steps, and a sampler has 7 calls"):
        samplers.main([*TINY, "--calls", "7"])
    with pytest.raises(FestinaError, match="'nothing' does not ship"):
        samplers.main(["nothing"])

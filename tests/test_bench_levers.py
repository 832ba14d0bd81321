"""The benchmark of step-level levers, tiny: which rows it has, and that equal ways give equal pictures."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import levers

from festina import FestinaError

TINY = ["--steps", "8", "--images", "2", "--fit-images", "4", "--reference-steps", "9", "--batch", "2"]


def test_rows_of_levers(tmp_path, capsys):
    skipping = ["replay", "LTC-Accel", "deleted steps", "extrapolated latents", "extrapolated latents, measured"]
    chosen = ["fewer steps", *skipping, "teleportation"]
    out = tmp_path / "levers.json"
    found = levers.main([*TINY, "--levers", *chosen, "--out", str(out)])
    rows = {(row["lever"], row["name"]): row for row in found["rows"]}
    assert [lever for lever in chosen if any(row[0] == lever for row in rows)] == chosen
    assert rows["fewer steps", "8 steps"]["psnr_uncached"] is None
    # Of eight steps those after a quarter, but the last, are left out where they are odd: 3 and 5.
    after = {lever: rows[lever, "after 25%"] for lever in skipping}
    assert {row["calls"] for row in after.values()} == {6}
    assert len({row["macs"] for row in after.values()}) == 1
    assert rows["fewer steps", "8 steps"]["macs"] * 6 == after["replay"]["macs"] * 8
    assert len({row["psnr_uncached"] for row in after.values()}) == 5
    cached = rows["replay", "after 25%, every second call cached"]
    assert cached["macs"] < after["replay"]["macs"]
    assert rows["teleportation", "2 steps left out"]["calls"] == 6
    saved = json.loads(out.read_text())
    assert saved["benchmark"] == "levers"
    assert capsys.readouterr().out.count("\n| ") == 1 + len(found["rows"])


def test_a_pipeline_that_does_not_ship_is_refused():
    with pytest.raises(FestinaError, match="'nothing' does not ship"):
        levers.main(["nothing"])

"""A search that is killed again and again ends where an undisturbed one ends, and evaluates nothing twice."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import search_toy
from search_toy import SETTINGS, ToyEvaluator, told, toy_genome

import festina
from festina.search.archive import Archive
from festina.search.engine import search

KILLS = 5


def _to_the_end(archive: Path, log: Path) -> tuple[str, str]:
    """Output and trouble of the toy search in a fresh interpreter with another hash seed."""
    source = str(Path(festina.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "99"}
    command = [sys.executable, search_toy.__file__, str(archive), str(log)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return ended.stdout, ended.stderr


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_sigkill_loses_the_candidate_in_flight_and_nothing_else(tmp_path: Path) -> None:
    genome = toy_genome(steps=5, blocks=3)
    with Archive(tmp_path / "whole.sqlite") as archive:
        seen, unseen = (ToyEvaluator(genome, archive, name) for name in ("search", "held out"))
        expected = told(search(seen, unseen, genome, SETTINGS))
        made = len(archive)
        assert made == len(seen.made) + len(unseen.made)

    archive, log = tmp_path / "killed.sqlite", tmp_path / "log"
    chance = random.Random(11)
    for _ in range(KILLS):
        # A fork shares what is imported already, which takes longer than the search.
        child = multiprocessing.get_context("fork").Process(target=search_toy.main, args=(archive, log))
        child.start()
        until = len(_lines(log)) + chance.randint(10, made // (KILLS + 2))
        while len(_lines(log)) < until:
            assert child.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.005))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL

    output, trouble = _to_the_end(archive, log)
    assert output, trouble
    assert json.loads(output) == expected
    lines = _lines(log)
    assert len(set(lines)) == made
    assert made <= len(lines) <= made + KILLS
    with Archive(archive) as opened:
        assert len(opened) == made

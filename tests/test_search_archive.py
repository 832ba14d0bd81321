import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from search_toy import ToyEvaluator, toy_genome

from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.archive import Archive, Made, WorkloadKey, evaluation_key
from festina.search.evaluation import Evaluation

GENOME = toy_genome()
PLAN = GENOME.decode(np.arange(GENOME.length) % 2 == 0)
WORK = WorkloadKey("work", '{"what": "a workload"}')


def _made(plan: Plan | None = PLAN, scores: tuple[float, ...] = (0.1, 1 / 3, 1e-300)) -> Made:
    return Made(Evaluation(plan, 4, scores, 1, 7 * 10**15, 1.25, 4096), '{"hardware": "none"}')


def _fail() -> Made:
    raise AssertionError("evaluated twice")


def _plans(count: int) -> list[Plan]:
    return [GENOME.decode(np.array(list(f"{number:012b}")) == "1") for number in range(count)]


def _filled(path: Path, count: int = 40) -> list[Evaluation]:
    with Archive(path) as archive:
        evaluator = ToyEvaluator(GENOME, archive, "search")
        return [evaluator.evaluate(plan) for plan in _plans(count)]


def _evaluate(evaluator: ToyEvaluator, plans: list[Plan], into: list[Evaluation]) -> None:
    for plan in plans:
        into.append(evaluator.evaluate(plan))


def test_makes_each_evaluation_once_and_returns_it_exactly(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    with Archive(path) as archive:
        first = archive.get_or_make(PLAN, WORK, _made)
        assert archive.get_or_make(PLAN, WORK, _fail) == first == _made().evaluation
    with Archive(path) as archive:
        assert archive.get_or_make(PLAN, WORK, _fail) == first
        assert archive.evaluations("work") == [first]
        assert archive.evaluations("other") == []
        assert archive.workloads() == {"work": WORK.description}


def test_the_key_is_the_canonical_plan_and_the_workload(tmp_path: Path) -> None:
    mask = PLAN.mask()
    mask[0] = False
    same = Plan.from_mask(PLAN.denoiser, PLAN.sites, mask, method="elsewhere")
    assert evaluation_key(same, "work") == evaluation_key(PLAN, "work")
    keys = {evaluation_key(plan, work) for plan in (PLAN, GENOME.uncached(), None) for work in ("work", "other")}
    assert len(keys) == 6
    with Archive(tmp_path / "archive.sqlite") as archive:
        archive.get_or_make(PLAN, WORK, _made)
        archive.get_or_make(same, WORK, _fail)
        archive.get_or_make(None, WORK, lambda: _made(None))
        assert len(archive) == 2


def test_stored_provenance_and_time(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    with Archive(path) as archive:
        archive.get_or_make(PLAN, WORK, _made)
    row = sqlite3.connect(path).execute("SELECT reward, scores, provenance, created FROM evaluations").fetchone()
    assert row[0] == _made().evaluation.reward
    assert json.loads(row[1]) == [0.1, 1 / 3, 1e-300]
    assert row[2] == '{"hardware": "none"}'
    assert row[3].endswith("+00:00")


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _scribbled(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 4096 + data[middle + 4096 :]


@pytest.mark.parametrize("damage", [_cut, _scribbled, lambda data: b"no archive at all, only text" * 100])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_corrupt_file_is_reported_and_left_alone(tmp_path: Path, damage, read_only: bool) -> None:
    path = tmp_path / "archive.sqlite"
    _filled(path)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(FestinaError, match=r"corrupt.*left as it is"):
            Archive(path, read_only=read_only)
    assert path.read_bytes() == before


def test_other_schemas_and_other_databases_are_refused_untouched(tmp_path: Path) -> None:
    newer, foreign = tmp_path / "newer.sqlite", tmp_path / "foreign.sqlite"
    _filled(newer, 1)
    for path, change in ((newer, "PRAGMA user_version = 2"), (foreign, "CREATE TABLE wine (year)")):
        database = sqlite3.connect(path)
        database.execute(change)
        database.commit()
        database.close()
    before = newer.read_bytes(), foreign.read_bytes()
    with pytest.raises(FestinaError, match="schema 2"):
        Archive(newer)
    with pytest.raises(FestinaError, match="not an archive"):
        Archive(foreign)
    assert (newer.read_bytes(), foreign.read_bytes()) == before


def test_a_full_disk_keeps_what_was_archived(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    with Archive(path) as archive:
        evaluator = ToyEvaluator(GENOME, archive, "search")
        pages = archive._database.execute("PRAGMA page_count").fetchone()[0]
        archive._database.execute(f"PRAGMA max_page_count = {pages + 4}")
        kept: list[Evaluation] = []
        with pytest.raises(FestinaError, match="disk is full"):
            _evaluate(evaluator, _plans(200), kept)
        assert 0 < len(kept) < 200
        assert archive.evaluations("search") == kept
        archive._database.execute("PRAGMA max_page_count = 100000")
        kept.append(evaluator.evaluate(_plans(200)[len(kept)]))
    with Archive(path) as archive:
        assert archive.evaluations("search") == kept


def test_one_process_writes_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    with Archive(path) as archive:
        archive.get_or_make(PLAN, WORK, _made)
        with pytest.raises(FestinaError, match="another process is writing"):
            Archive(path)
        with Archive(path, read_only=True) as reader:
            assert reader.evaluations("work") == [_made().evaluation]
            with pytest.raises(FestinaError, match="readonly"):
                reader.get_or_make(None, WORK, lambda: _made(None))
        archive.get_or_make(None, WORK, lambda: _made(None))
    with Archive(path) as archive:
        assert len(archive) == 2


def test_a_failed_opening_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(FestinaError):
        Archive(path)
    path.unlink()
    with Archive(path) as archive:
        assert len(archive) == 0


def test_a_failing_evaluation_is_not_archived(tmp_path: Path) -> None:
    with Archive(tmp_path / "archive.sqlite") as archive:
        with pytest.raises(AssertionError):
            archive.get_or_make(PLAN, WORK, _fail)
        with pytest.raises(ValueError, match="JSON"):
            archive.get_or_make(PLAN, WORK, lambda: _made(scores=(float("nan"),)))
        assert len(archive) == 0
        archive.get_or_make(PLAN, WORK, _made)


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FestinaError, match="cannot write beside"):
        Archive(tmp_path / "nowhere" / "archive.sqlite")
    with pytest.raises(FestinaError, match="no archive"):
        Archive(tmp_path / "archive.sqlite", read_only=True)
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(FestinaError, match="is empty"):
        Archive(tmp_path / "empty.sqlite", read_only=True)

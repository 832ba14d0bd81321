"""The archive: one SQLite file that holds every evaluation ever made, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from festina.errors import FestinaError
from festina.plan import Plan
from festina.search.evaluation import Evaluation

SCHEMA = 1
"""Version of the archive's tables."""

APPLICATION = 0x46455354
"""SQLite application id of an archive: "FEST"."""

_TABLES = """
BEGIN EXCLUSIVE;
CREATE TABLE workloads (key TEXT PRIMARY KEY, description TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE evaluations (
    key TEXT PRIMARY KEY,
    workload TEXT NOT NULL REFERENCES workloads (key),
    plan TEXT,
    steps INTEGER NOT NULL,
    scores TEXT NOT NULL,
    images_per_prompt INTEGER NOT NULL,
    reward REAL NOT NULL,
    macs INTEGER NOT NULL,
    seconds REAL NOT NULL,
    peak_bytes INTEGER NOT NULL,
    created TEXT NOT NULL,
    provenance TEXT NOT NULL
);
CREATE INDEX evaluations_by_workload ON evaluations (workload);
PRAGMA application_id = {application};
PRAGMA user_version = {schema};
COMMIT;
"""

_COLUMNS = "plan, steps, scores, images_per_prompt, macs, seconds, peak_bytes"


@dataclass(frozen=True)
class WorkloadKey:
    """What an evaluation belongs to: the hash of a workload and its description as JSON text."""

    key: str
    description: str


class Archive:
    """Every evaluation ever made, in one file. A context manager; closing it lets others write.

    Each evaluation is committed to disk at once (rollback journal, synchronous = FULL), so whatever ends the process
    loses no more than the candidate in flight. One process writes at a time, which a lock in a file beside the archive
    (`<name>.lock`) ensures; it goes with the process that holds it. Any number may read meanwhile.

    Args:
        path: the file; made if it is missing, unless `read_only`.
        read_only: open for looking only, without the lock.

    Raises:
        FestinaError: the file is corrupt, is no archive, was made by another version, is being written by another
            process, or cannot be opened or made. The file is then as it was.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        self.path = Path(path)
        if read_only and not self.path.is_file():
            raise FestinaError(f"there is no archive {self.path}; run a search first.")
        self._lock = None if read_only else _lock(self.path)
        try:
            self._database = _open(self.path, read_only)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the lock."""
        self._database.close()
        self._unlock()

    def __len__(self) -> int:
        with self._reporting():
            count: int = self._database.execute("SELECT count(*) FROM evaluations").fetchone()[0]
        return count

    def get_or_make(self, plan: Plan | None, workload: WorkloadKey, make: Callable[[], Made]) -> Evaluation:
        """The archived evaluation of a plan on a workload; made and committed first if there is none.

        Args:
            plan: the plan; None for the untouched sampler (its number of steps is part of the workload).
            workload: what it is evaluated on.
            make: makes the evaluation and says how: called only if the archive has none.

        Raises:
            FestinaError: the archive cannot be read or written, for example because the disk is full. What it held
                before stays readable.
        """
        key = evaluation_key(plan, workload.key)
        with self._reporting():
            row = self._database.execute(f"SELECT {_COLUMNS} FROM evaluations WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return _evaluation(row)
        made = make()
        with self._reporting():
            self._insert(key, workload, made)
        return made.evaluation

    def evaluations(self, workload: str) -> list[Evaluation]:
        """All evaluations on the workload with this key, oldest first."""
        with self._reporting():
            rows = self._database.execute(
                f"SELECT {_COLUMNS} FROM evaluations WHERE workload = ? ORDER BY rowid", (workload,)
            ).fetchall()
        return [_evaluation(row) for row in rows]

    def workloads(self) -> dict[str, str]:
        """The description of every workload in the archive, by key."""
        with self._reporting():
            return dict(self._database.execute("SELECT key, description FROM workloads").fetchall())

    def _insert(self, key: str, workload: WorkloadKey, made: Made) -> None:
        evaluation = made.evaluation
        row = (
            key,
            workload.key,
            None if evaluation.plan is None else evaluation.plan.to_json(),
            evaluation.steps,
            json.dumps(evaluation.scores, allow_nan=False),
            evaluation.images_per_prompt,
            evaluation.reward,
            evaluation.macs,
            evaluation.seconds,
            evaluation.peak_bytes,
            datetime.now(UTC).isoformat(timespec="seconds"),
            made.provenance,
        )
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.execute(
                "INSERT OR IGNORE INTO workloads VALUES (?, ?)", (workload.key, workload.description)
            )
            self._database.execute(f"INSERT INTO evaluations VALUES ({', '.join('?' * len(row))})", row)
            self._database.execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself when the disk is full.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _trouble(self.path, error) from None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


@dataclass(frozen=True)
class Made:
    """A new evaluation and how it came about: hardware and library versions as JSON text."""

    evaluation: Evaluation
    provenance: str


def evaluation_key(plan: Plan | None, workload: str) -> str:
    """SHA-256 (hex) over the canonical plan's key, "untouched" if there is no plan, and the workload's key."""
    return hashlib.sha256(f"{plan.key() if plan else 'untouched'}\n{workload}".encode()).hexdigest()


def _evaluation(row: tuple[str | None, int, str, int, int, float, int]) -> Evaluation:
    plan, steps, scores, images_per_prompt, macs, seconds, peak_bytes = row
    return Evaluation(
        plan=None if plan is None else Plan.from_json(plan),
        steps=steps,
        scores=tuple(json.loads(scores)),
        images_per_prompt=images_per_prompt,
        macs=macs,
        seconds=seconds,
        peak_bytes=peak_bytes,
    )


def _lock(path: Path) -> sqlite3.Connection:
    """Hold an exclusive transaction on a file beside the archive: portable, and gone with its process."""
    where = path.with_name(path.name + ".lock")
    lock = None
    try:
        lock = sqlite3.connect(where, isolation_level=None, timeout=0)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        if lock is not None:
            lock.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise FestinaError(
                f"another process is writing the archive {path}; wait until it ends, or search into another folder."
            ) from None
        raise FestinaError(f"cannot write beside the archive {path} ({error}); wanted a folder to write in.") from None
    return lock


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    database = None
    try:
        # A reader opens for writing too: it may have to roll back what a killed process left half committed.
        mode = "rw" if read_only else "rwc"
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0
        )
        # All of these only read: a file that is not ours is refused before a byte of it is written.
        application = database.execute("PRAGMA application_id").fetchone()[0]
        schema = database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        new = not (application or schema or tables)
        if not new:
            _check(path, database, application, schema)
        if read_only and new:
            raise FestinaError(f"the archive {path} is empty; run a search first.")
        database.execute(f"PRAGMA query_only = {int(read_only)}")
        if not read_only:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("PRAGMA synchronous = FULL")
        if new:
            database.executescript(_TABLES.format(application=APPLICATION, schema=SCHEMA))
    except sqlite3.Error as error:
        if database is not None:
            database.close()
        raise _trouble(path, error) from None
    except BaseException:
        if database is not None:
            database.close()
        raise
    return database


def _check(path: Path, database: sqlite3.Connection, application: int, schema: int) -> None:
    if application != APPLICATION:
        raise FestinaError(f"{path} is an SQLite file, but not an archive of Festina; choose another path.")
    if schema != SCHEMA:
        raise FestinaError(
            f"{path} is an archive of schema {schema}, this Festina reads {SCHEMA}; use the Festina that made it."
        )
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise FestinaError(
            f"the archive {path} is corrupt ({found.splitlines()[0]}); it was left as it is. Restore a copy, or move "
            f"it away to begin anew."
        )


def _trouble(path: Path, error: sqlite3.Error) -> FestinaError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return FestinaError(f"the disk is full: {path} cannot grow. Make room and run the same command again.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return FestinaError(
            f"the archive {path} is corrupt or no SQLite file ({error}); it was left as it is. Restore a copy, or move "
            f"it away to begin anew."
        )
    return FestinaError(f"cannot use the archive {path}: {error}.")

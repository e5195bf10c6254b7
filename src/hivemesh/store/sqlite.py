"""The embedded store: one SQLite file, written by one thread, durable at each commit.

Problems this class answers:

- *Durability.* Write-ahead log with `synchronous=FULL`: a commit returns after its log records are on disk.
- *Many small commits.* Those that arrive while the disk is busy are written together with one sync. Each keeps its
  own revision, its own conditions, and is all or nothing.
- *A full disk.* SQLite rolls back; the callers get `Unavailable`; the next commit finds the file as it was.
- *Two daemons on one directory.* A lock on a file beside the database, which the kernel drops with its owner.

Watches are served from memory: the history begins when the store is opened and holds the latest events.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hivemesh
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.store.api import Compacted, Delete, Entry, Event, Expect, Mismatch, Put, Snapshot

FILE = "store.db"
LOCK = "store.lock"
FORMAT = 2
"""Of the tables below and of the values in them; a number per incompatible change."""
HISTORY = 10_000
"""Events kept for watches that resume."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _Request:
    changes: Sequence[Put | Delete]
    expect: Sequence[Expect]
    at: int | None
    done: "asyncio.Future[int]"


@dataclass(slots=True)
class _Written:
    """What became of a request: a revision and its events, or the reason."""

    request: _Request
    revision: int = 0
    events: tuple[Event, ...] = ()
    error: Exception | None = None


class SqliteStore:
    """A `Store` on the file `store.db` of a directory. Made by `open`."""

    def __init__(
        self,
        directory: Path,
        connection: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        *,
        lock: int,
        revision: int,
        history: int,
    ) -> None:
        self.directory = directory
        self._connection = connection
        self._thread = thread
        self._lock = lock
        self._closed = False
        self._revision = revision  # the writer thread's
        self._pending: list[_Request] = []
        self._writer: asyncio.Task[None] | None = None
        self._history: list[tuple[Event, ...]] = []  # of revisions _forgotten+1, _forgotten+2, …
        self._forgotten = revision
        self._events = 0
        self._limit = history
        self._sleepers: set[asyncio.Future[None]] = set()

    @classmethod
    async def open(cls, directory: Path, history: int = HISTORY, after: int = 0) -> "SqliteStore":
        """Open or create the store under `directory`; one that is created begins after revision `after`.

        Raises `Invalid` when another version wrote it or it is damaged, `Unavailable` when another process has it
        open or the disk refuses.
        """
        thread = ThreadPoolExecutor(1, "store")
        loop = asyncio.get_running_loop()
        try:
            connection, lock, revision = await loop.run_in_executor(thread, _open, directory, after)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(directory, connection, thread, lock=lock, revision=revision, history=history)

    async def snapshot(self, prefix: str = "") -> Snapshot:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, prefix)

    async def commit(
        self, changes: Sequence[Put | Delete], expect: Sequence[Expect] = (), at: int | None = None
    ) -> int:
        self._check_open()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append(_Request(changes, expect, at, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_pending(), name="store writer")
        return await done

    async def watch(self, prefix: str, after: int) -> AsyncIterator[tuple[Event, ...]]:
        position = after
        while True:
            if position < self._forgotten:
                raise Compacted(f"changes after revision {position} are no longer kept")
            if self._closed:
                return
            if position < self._forgotten + len(self._history):
                batch = self._history[position - self._forgotten]
                position += 1
                events = tuple(event for event in batch if event.key.startswith(prefix)) if prefix else batch
                if events:
                    yield events
                continue
            sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.add(sleeper)
            try:
                await sleeper
            finally:
                self._sleepers.discard(sleeper)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            await asyncio.wait({self._writer})
        self._wake()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    # --- the event loop's side ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed: this node is stopping or leaving the swarm")

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            requests, self._pending = self._pending, []
            try:
                outcomes = await loop.run_in_executor(self._thread, self._write, requests)
            except Exception as error:  # whatever it was, the callers must hear of it
                outcomes = [_Written(request, error=error) for request in requests]
            for outcome in outcomes:
                if outcome.error is None and outcome.events:
                    self._remember(outcome.events)
                if outcome.request.done.cancelled():
                    continue
                if outcome.error is not None:
                    outcome.request.done.set_exception(outcome.error)
                else:
                    outcome.request.done.set_result(outcome.revision)
            self._wake()
        self._writer = None

    def _remember(self, events: tuple[Event, ...]) -> None:
        self._history.append(events)
        self._events += len(events)
        if self._events > 2 * self._limit:  # twice, so that trimming costs little per event
            drop = 0
            while self._events > self._limit and drop < len(self._history) - 1:
                self._events -= len(self._history[drop])
                drop += 1
            del self._history[:drop]
            self._forgotten += drop

    def _wake(self) -> None:
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    # --- the writer thread's side ---------------------------------------------------------------------------------

    def _read(self, prefix: str) -> Snapshot:
        rows = self._connection.execute(
            "SELECT key, value, revision FROM entries WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key",
            (prefix, len(prefix), prefix),
        )
        return Snapshot(self._revision, tuple(Entry(*row) for row in rows))

    def _write(self, requests: list[_Request]) -> list[_Written]:
        """All requests in one SQLite transaction, each in a savepoint of its own."""
        revision = self._revision
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            outcomes = []
            for request in requests:
                execute("SAVEPOINT request")
                outcome = self._apply(request, revision + 1)
                if outcome.error is not None:
                    execute("ROLLBACK TO request")
                revision = max(revision, outcome.revision)
                execute("RELEASE request")
                outcomes.append(outcome)
            execute("UPDATE meta SET value = ? WHERE name = 'revision'", (str(revision),))
            execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            refused = _refusal(self.directory, error)
            return [_Written(request, error=refused) for request in requests]
        self._revision = revision
        return outcomes

    def _apply(self, request: _Request, revision: int) -> _Written:
        execute = self._connection.execute
        if request.at is not None and request.at < revision - 1:
            return _Written(request, error=Mismatch(""))
        for expected in request.expect:
            row = execute("SELECT revision FROM entries WHERE key = ?", (expected.key,)).fetchone()
            if (row[0] if row else 0) != expected.revision:
                return _Written(request, error=Mismatch(expected.key))
        events = []
        for change in request.changes:
            if isinstance(change, Put):
                execute("REPLACE INTO entries VALUES (?, ?, ?)", (change.key, change.value, revision))
                events.append(Event(change.key, change.value, revision))
            elif execute("DELETE FROM entries WHERE key = ?", (change.key,)).rowcount:
                events.append(Event(change.key, None, revision))
        if not events:  # nothing changed, so nobody need hear of it
            return _Written(request, revision=revision - 1)
        return _Written(request, revision=revision, events=tuple(events))

    def _close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def remove(directory: Path) -> None:
    """The database is gone, with its log; nobody has it open."""
    for suffix in ("", "-wal", "-shm"):
        (directory / f"{FILE}{suffix}").unlink(missing_ok=True)


def _open(directory: Path, after: int) -> tuple[sqlite3.Connection, int, int]:
    """Connection, lock and revision; in the writer thread."""
    path = directory / FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"cannot open the store under {directory}: {error.strerror}; check permissions and free space"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # the CA's key is in there
        connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            return connection, lock, _prepare(connection, directory, after)
        except BaseException:
            connection.close()
            raise
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise Unavailable(
                f"the store under {directory} is in use: another hivemeshd runs on this data directory; "
                "stop it, or give this one another --data-dir"
            ) from None
        if isinstance(error, OSError):
            raise Unavailable(
                f"cannot open the store under {directory}: {error.strerror}; check permissions and free space"
            ) from error
        if isinstance(error, sqlite3.Error):
            raise _refusal(directory, error) from error
        raise


def _prepare(connection: sqlite3.Connection, directory: Path, after: int) -> int:
    execute = connection.execute
    execute("PRAGMA cache_size = -512")  # KiB; all that is read often is in memory above
    execute(
        "PRAGMA locking_mode = EXCLUSIVE"
    )  # the log's index in memory, not in a mapped file on a disk that may fill
    execute("PRAGMA journal_mode = WAL")
    execute("PRAGMA synchronous = FULL")
    tables = {name for (name,) in execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            execute(statement)
        rows = {"format": str(FORMAT), "version": hivemesh.__version__, "revision": str(after)}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())
        execute("COMMIT")
        return after
    meta = dict(execute("SELECT name, value FROM meta")) if "meta" in tables else {}
    if meta.get("format") != str(FORMAT):
        raise Invalid(
            f"data directory {directory} was written by version {meta.get('version', 'unknown')} of hivemesh (store "
            f"format {meta.get('format', 'unknown')}, this is {hivemesh.__version__} with format {FORMAT}); run that "
            "version, or start with an empty data directory"
        )
    return int(meta["revision"])


def _refusal(directory: Path, error: sqlite3.Error) -> Exception:
    """SQLite's reason in words that say what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(directory)):
        return Unavailable(
            f"the disk under {directory} is full: nothing was changed; free some space there and try again"
        )
    read_only = code == sqlite3.SQLITE_IOERR and _is_read_only(directory)
    if read_only or code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return Unavailable(
            f"the store under {directory} cannot be written ({error}): nothing was changed; check that the file system "
            "is mounted read-write and that its owner is this user"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return Invalid(f"the store {directory / FILE} is damaged ({error}): restore it from a backup or remove it")
    return Unavailable(f"the store under {directory} refused to write ({error}): nothing was changed; try again")


def _is_read_only(directory: Path) -> bool:
    """As file systems become when their disk fails them."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _is_full(directory: Path) -> bool:
    try:
        return os.statvfs(directory).f_bavail == 0
    except OSError:
        return False

"""Where a ledger is: SQLite beside the results, or a server; and whether it is still there.

Everything about the place that can be known without MLflow, so that a wrong path or address is said at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse, urlsplit

from trainers.contract.errors import InputError, UserError, given
from trainers.contract.faults import without_login

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_ANSWER_SECONDS = 10
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306}
"""Where their servers listen unless an address says otherwise."""
_SQLITE, _WITH_DRIVER = "sqlite:///", "sqlite+pysqlite"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("published", "corpora", "bench", "comparisons", ARTIFACTS, DATABASE)
"""What else lies in a results folder: no new sweep has these names."""


def check_name(name: str) -> None:
    """Raise `InputError` for what is no name of a sweep. It names a folder, too, which must not leave the results."""
    if not is_name(name):
        raise InputError(f"--name: {name!r} is not allowed; letters, digits, . _ - (at most 64)")


def check_new_name(name: str) -> None:
    """Also for one that would lie on something else in the results folder."""
    check_name(name)
    if is_taken(name):
        raise InputError(f"--name: {name!r} is not allowed: it is something else's in a results folder")


def is_taken(name: str) -> bool:
    """Whether something else of that name lies in a results folder, or may: the database has a lock and journals beside it."""
    return name in RESERVED or name.startswith(f"{Path(DATABASE).stem}.")


def is_name(name: str) -> bool:
    """Whether a sweep can be called so. A server may hold experiments that others named."""
    return _NAME.fullmatch(name) is not None


class LedgerError(UserError):
    """The ledger cannot be opened or read; the message is one line for the user, without the password of an address."""

    def __init__(self, message: str) -> None:
        super().__init__(without_login(message))


class NoSweepError(LedgerError):
    """There is no sweep of that name."""


def default_tracking_uri(results: Path) -> str:
    """SQLite beside the results."""
    return sqlite_uri(results.absolute() / DATABASE)


def sqlite_uri(file: Path) -> str:
    """The address of an SQLite file. SQLAlchemy and MLflow read `%` and `?` in a plain one as something else."""
    text = str(file)
    if not set(text) & set("%?#"):
        return _SQLITE + text
    from sqlalchemy import URL

    # With the driver's name MLflow leaves the path alone; otherwise it makes the quoted one's folder.
    return URL.create(_WITH_DRIVER, database=text).render_as_string()


def sqlite_file(uri: str) -> Path | None:
    """The file of an address that `sqlite_uri` made, or of a plain one; None for anything else."""
    if uri.startswith(_WITH_DRIVER):
        from sqlalchemy import make_url

        return Path(make_url(uri).database or "")
    path = uri.removeprefix(_SQLITE)
    return Path(path) if path not in (uri, "", ":memory:") and "?" not in path else None


def refuse_odd_address(uri: str) -> None:
    """Raise `InputError` for a server's address that may be read in two ways: nobody knows what in it is a password."""
    if uri.partition("://")[0].lower() not in ("http", "https"):
        return
    try:
        parts = urlsplit(uri)
        odd = parts.port == 0 or not parts.hostname or parts.netloc.count("@") > 1
    except ValueError:
        odd = True
    if odd or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", uri):
        raise InputError(
            "--tracking-uri: no server's address, such as http://127.0.0.1:5000 or http://NAME:PASSWORD@HOST/PATH; "
            "in a password / ? # @ and : are written as %2F %3F %23 %40 and %3A"
        )


def log_in(uri: str) -> str:
    """A server's address without name and password, which are left where MLflow looks for them, in the environment.

    Raises `InputError` like `refuse_odd_address`.
    """
    refuse_odd_address(uri)
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def spare_loopback() -> None:
    """Servers on this machine are reached directly, whatever proxy the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if "*" not in hosts:
            os.environ[name] = ",".join(dict.fromkeys((*hosts, "127.0.0.1", "localhost", "::1")))


def is_server(uri: str) -> bool:
    """Whether artifacts are the server's to place; otherwise they lie in the results directory."""
    return urlparse(uri).scheme in ("http", "https") or uri.startswith("databricks")


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite ledger while it is opened: MLflow makes its tables then, and two makers break it."""
    database = sqlite_file(uri)
    if database is None or only_read(database):
        yield
        return
    lock = database.with_suffix(".lock")
    with given(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w", encoding="utf-8")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def writing_ahead(database: Path) -> Iterator[None]:
    """Let SQLite write many small commits quickly, for as long as this lasts: into a log that is flushed now and then.

    MLflow commits a run six times, and each waits for the disk. With a write-ahead log no commit waits; a power cut may
    lose the last of them, which the same import completes, but never damages the database. Connections that are opened
    meanwhile are of this kind. Afterwards the database is one plain file again, unless another process has it open; where
    the file system has no shared memory for the log, everything stays as it is. What is no database, whoever opens it says.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.DatabaseError):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)
        if database.exists():
            with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.DatabaseError):
                connection.execute("PRAGMA journal_mode = DELETE")


def only_read(database: Path) -> bool:
    """Whether it is a ledger that one may look at and not change: a colleague's, or a snapshot."""
    return database.exists() and not (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK))


def refuse_no_database(url: str, key: str) -> None:
    """Raise `UserError` for what is no address of a database, and where its driver is not installed; `key` is whose it is."""
    if "://" not in url:
        shown = "it" if "@" in url else repr(url)  # before the @ may be a password
        raise UserError(f"{key}: {shown} is not a database's address, such as sqlite:///FILE.db")
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    kind = url.split("://")[0]  # the rest may hold a password
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ValueError):  # the last for a port that is no number
        raise UserError(
            f"{key}: {kind}://... is not a database's address; sqlite, postgresql and mysql are known by address"
        ) from None
    except ImportError as error:
        raise UserError(f"{key}: the driver of {kind} is not installed ({error})") from None


def _refuse_silent_database(uri: str, port: int) -> None:
    from sqlalchemy import make_url

    refuse_no_database(uri, "tracking_uri")
    url = make_url(uri)
    if not url.host or "," in url.host:  # a socket of this machine, several servers
        return
    try:
        socket.create_connection((url.host, url.port or port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise LedgerError(f"{uri}: no database answers there: {first_line(error)}") from error


def refuse_unreachable(uri: str) -> None:
    """Raise `UserError` when nobody listens at a server's address; MLflow itself would retry for minutes. Nobody logs in: what
    this process starts later would inherit the password."""
    refuse_odd_address(uri)
    spare_loopback()
    scheme = urlparse(uri).scheme
    if (port := _DATABASE_PORTS.get(scheme.partition("+")[0])) is not None:
        _refuse_silent_database(uri, port)
    uri = without_login(uri)
    if scheme not in ("http", "https"):
        return
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_ANSWER_SECONDS).close()
    # Any answer is an answer: servers behind a login refuse /health and still take runs.
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        raise LedgerError(f"{uri}: no MLflow server answers there: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def follow_moved_artifacts(results: Path, name: str, experiment_id: str, old: str) -> tuple[str, str]:
    """The old and the new address of a sweep's artifacts; corrected in the ledger where the two differ.

    MLflow stores absolute addresses, `old` among them, and a results directory may have been moved or copied. A ledger
    that one may not change is left as it is: whoever reads it puts the new address in the old one's place.
    """
    here = results.absolute() / ARTIFACTS / name
    new = here.as_uri()
    if old == new or not here.is_dir():
        return old, old
    if only_read(results / DATABASE):
        return old, new
    moved = (
        "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
        "WHERE experiment_id = ? AND instr(artifact_uri, ?) = 1"
    )
    with closing(sqlite3.connect(results / DATABASE)) as database, database:
        database.execute(moved, (new, len(old) + 1, int(experiment_id), old + "/"))
        database.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, int(experiment_id))
        )
    return old, new

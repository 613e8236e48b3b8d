import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from lightning_stable.experiments.pool import Job, run_all
from tests.experiments.jobs import blocked, fail, process

SCRIPT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from lightning_stable.experiments.pool import end_with_parent

if __name__ == "__main__":
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 300).result()
"""


def test_jobs_run_in_other_processes_and_one_that_fails_does_not_stop_the_others() -> None:
    console, kept = Console(file=io.StringIO()), {}

    def keep(name: str, result: int) -> str:
        kept[name] = result
        return f"{name} is done"

    jobs = [Job("bad", 3.0, fail, ("no reason",)), Job("short", 1.0, process, ()), Job("long", 2.0, process, ())]
    failures = run_all(jobs, 1, keep, console, "jobs")
    assert {name: str(error) for name, error in failures.items()} == {"bad": "no reason"}
    assert list(kept) == ["short", "long"]  # in their order
    assert os.getpid() not in kept.values()
    assert "short is done\nlong is done\n" in console.file.getvalue()


def test_jobs_do_not_see_ctrl_c_and_who_waits_for_them_does() -> None:
    kept: dict[str, set[int]] = {}

    def keep(name: str, result: set[int]) -> str:
        kept[name] = result
        return ""

    run_all([Job("a", 1.0, blocked, ())], 1, keep, Console(file=io.StringIO()), "jobs")
    assert kept == {"a": {signal.SIGINT}}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_runs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        process.kill()
        # Its run holds the other end of the pipe as long as it lives.
        process.communicate(timeout=60)


# Ctrl-C reaches every process of a terminal, what kill sends only one.
@pytest.mark.parametrize(("number", "to_all", "status"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)])
def test_signals_leave_a_line_and_no_process(number: int, to_all: bool, status: int, tmp_path: Path) -> None:
    # Jobs in the background ignore SIGINT, and so would the process that is to be interrupted.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv.pop(0)\n"
    script += "import runpy; runpy.run_module('tests.experiments.jobs', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", script, "", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        jobs = [int(path.name) for path in tmp_path.iterdir()]
        (os.killpg if to_all else os.kill)(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("Stopped.\n", status)
    assert len(jobs) == 2
    for job in jobs:
        with pytest.raises(ProcessLookupError):
            os.kill(job, 0)

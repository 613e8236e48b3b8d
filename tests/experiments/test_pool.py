import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from lightning_stable.experiments.pool import Job, run_all
from tests.experiments.jobs import fail, process

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

    jobs = [Job("bad", 3.0, fail, ("no reason",)), Job("long", 2.0, process, ()), Job("short", 1.0, process, ())]
    failures = run_all(jobs, 1, keep, console, "jobs")
    assert {name: str(error) for name, error in failures.items()} == {"bad": "no reason"}
    assert list(kept) == ["long", "short"]
    assert os.getpid() not in kept.values()
    assert "long is done\nshort is done\n" in console.file.getvalue()


def test_runs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        process.kill()
        # Its run holds the other end of the pipe as long as it lives.
        process.communicate(timeout=60)

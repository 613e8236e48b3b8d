import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from lightning_stable.experiments.pool import end_with_parent

if __name__ == "__main__":
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 300).result()
"""


def test_runs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        process.kill()
        # Its run holds the other end of the pipe as long as it lives.
        process.communicate(timeout=60)

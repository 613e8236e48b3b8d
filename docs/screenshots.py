"""Check what a demo left for TensorBoard, through TensorBoard itself, and take the pictures of ``docs/tensorboard.md``.

    python docs/screenshots.py runs/demo

TensorBoard runs on a free port of this machine while the script does. The exit status is 1 if a promised series is
missing or holds a value that is not finite.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

# The scalars of a demo that the pages show, by run.
COMPARED = ("shadow/compared/loss", "shadow/compared/val_loss")
APART = ("shadow/compared/weight_distance", "shadow/compared/prediction_distance")
PROJECTED = ("stability/projection_distance", "stability/core.l0/recurrent_norm_kept")
SCALARS = {
    "stable": ("stability/rate", "stability/core.l0/rate", *PROJECTED, "truncation/core/max_error", *COMPARED),
    "stable/shadow": (*COMPARED, *APART, "val_loss", "val_perplexity"),
    "stable/theory": ("stability/target", *APART),
    "unconstrained": ("truncation/core/max_error", *COMPARED),
    "unconstrained/shadow": (*COMPARED, *APART, "val_loss", "val_perplexity"),
}
# Of the gated cells; a demo with `--cell rnn` has singular values.
HISTOGRAMS = {"stable": r"stability/core\.l0/(unit_rates|singular_values)"}
IMAGES = dict.fromkeys(("stable", "unconstrained"), ("truncation/core", "state_gradient/core"))
COLUMNS = {"rate", "window", "cell", "hidden_size"}
METRICS = {"stability/rate", "shadow/val_loss_gap", "shadow/val_weight_distance_relative"}

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Name of the picture, page with the runs it shows, size and scale.
PICTURES = {
    "tensorboard-custom-scalars": (
        "#custom_scalars&regexInput=%5E(stable%7Cunconstrained)(%2F%7C%24)&_smoothingWeight=0",
        (1500, 1090),
        1.0,
    ),
    "tensorboard-images": ("#images&regexInput=%5E(stable%7Cunconstrained)%24", (1500, 980), 1.0),
    "tensorboard-hparams": ("#hparams", (2450, 330), 0.62),
}


class Server:
    """A TensorBoard that answers over HTTP.

    Args:
        url: The address of its pages, with a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON of a page below ``data/``."""
        return json.loads(self.bytes(f"data/{path}?{urlencode(query)}" if query else f"data/{path}"))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that answers a JSON."""
        request = Request(f"{self.url}data/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def bytes(self, path: str) -> bytes:
        """Return the content of a page."""
        with urlopen(f"{self.url}{path}", timeout=30) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def tensorboard(folder: Path) -> Iterator[Server]:
    """Start a TensorBoard that has read all runs of a folder; it ends with the block."""
    folder = folder.resolve()
    # Pages show the folder as the command line names it.
    arguments = ["--logdir", folder.name, "--host", "127.0.0.1", "--port", "0", "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=folder.parent)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        else:
            raise RuntimeError(f"TensorBoard did not start. Got:\n{''.join(lines)}")
        server = Server(found[0])
        runs = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("events.out.tfevents.*")}
        _wait(lambda: runs <= set(server.get("runs")), "all runs of the folder")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


def problems(server: Server) -> list[str]:
    """Return what a demo promises and TensorBoard lacks; nothing if all is well."""
    return [*_scalars(server), *_layout(server), *_histograms(server), *_images(server), *_table(server)]


def _scalars(server: Server) -> Iterator[str]:
    known = server.get("plugin/scalars/tags")
    for run, tags in SCALARS.items():
        for tag in tags:
            if tag not in known.get(run, {}):
                yield f"run {run!r} has no scalar {tag!r}"
                continue
            points = server.get("plugin/scalars/scalars", run=run, tag=tag)
            if not all(_is_finite(value) for _, _, value in points):
                yield f"scalar {tag!r} of run {run!r} is not finite"


def _layout(server: Server) -> Iterator[str]:
    pages = {page["title"]: page["chart"] for page in server.get("plugin/custom_scalars/layout").get("category", [])}
    if "Stability" not in pages:
        yield f"no page 'Stability' among {sorted(pages)}"
    runs = server.get("runs")
    for chart in pages.get("Stability", []):
        for pattern in chart["multiline"]["tag"]:
            found = [
                series
                for run in runs
                for series in server.get("plugin/custom_scalars/scalars", run=run, tag=pattern)[
                    "tag_to_events"
                ].values()
            ]
            if not found:
                yield f"chart {chart['title']!r} is empty: nothing matches {pattern!r}"
            if not all(_is_finite(value) for series in found for _, _, value in series):
                yield f"chart {chart['title']!r} shows values that are not finite"


def _histograms(server: Server) -> Iterator[str]:
    known = server.get("plugin/histograms/tags")
    for run, pattern in HISTOGRAMS.items():
        tags = [tag for tag in known.get(run, {}) if re.fullmatch(pattern, tag)]
        if not tags:
            yield f"run {run!r} has no histogram that matches {pattern!r}"
        for tag in tags:
            for _, _, buckets in server.get("plugin/histograms/histograms", run=run, tag=tag):
                if not all(_is_finite(value) for bucket in buckets for value in bucket):
                    yield f"histogram {tag!r} of run {run!r} is not finite"


def _images(server: Server) -> Iterator[str]:
    known = server.get("plugin/images/tags")
    for run, tags in IMAGES.items():
        for tag in tags:
            if tag not in known.get(run, {}):
                yield f"run {run!r} has no image {tag!r}"
                continue
            image = server.get("plugin/images/images", run=run, tag=tag, sample=0)[-1]
            content = server.bytes(f"data/plugin/images/individualImage?{image['query']}")
            if not content.startswith(b"\x89PNG"):
                yield f"image {tag!r} of run {run!r} is no PNG"


def _table(server: Server) -> Iterator[str]:
    experiment = server.post("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    columns = {info["name"] for info in experiment.get("hparamInfos", [])}
    metrics = {info["name"]["tag"] for info in experiment.get("metricInfos", [])}
    if missing := (COLUMNS - columns) | (METRICS - metrics):
        yield f"the table of runs lacks the columns {sorted(missing)}"
    rows = table_rows(server, experiment)
    for run in ("stable", "unconstrained"):
        if run not in rows:
            yield f"the table of runs has no row for {run!r}"
        elif not all(_is_finite(value) for value in rows[run].values() if not isinstance(value, (str, bool))):
            yield f"the row of {run!r} is not finite"
    if not {"rate", "window", *METRICS} <= rows.get("stable", {}).keys():
        yield f"the row of 'stable' has only {sorted(rows.get('stable', {}))}"


def table_rows(server: Server, experiment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the hyperparameters and metrics of every run in the table."""
    columns = [{"hparam": info["name"], "includeInResult": True} for info in experiment["hparamInfos"]]
    columns += [{"metric": info["name"], "includeInResult": True} for info in experiment["metricInfos"]]
    body = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_FAILURE"],
        "colParams": columns,
        "startIndex": 0,
        "sliceSize": 100,
        "includeMetrics": True,
    }
    groups = server.post("plugin/hparams/session_groups", body)["sessionGroups"]
    rows = {}
    for group in groups:
        values = {value["name"]["tag"]: value["value"] for value in group.get("metricValues", [])}
        rows[group["name"]] = group.get("hparams", {}) | values
    return rows


def photograph(server: Server, folder: Path) -> list[Path]:
    """Take the pictures with a browser that shows no window, and return their paths.

    Raises:
        RuntimeError: If there is no Chromium.
    """
    if BROWSER is None:
        raise RuntimeError("Pictures need Chromium, and none was found. Install it, or pass --no-pictures.")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (page, (width, height), scale) in PICTURES.items():
        file = folder / f"{name}.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += [f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"]
        options += ["--virtual-time-budget=20000", f"--screenshot={file}"]
        subprocess.run([BROWSER, *options, f"{server.url}{page}"], check=True, capture_output=True, timeout=120)
        files.append(file)
    return files


def _is_finite(value: object) -> bool:
    # JSON has no numbers that are not finite: they come as strings.
    return isinstance(value, (int, float)) and math.isfinite(value)


def _wait(ready: Any, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"TensorBoard did not show {what} within {seconds:g} seconds.")
        time.sleep(0.2)


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a demo")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "images", help="for the pictures")
    parser.add_argument("--no-pictures", action="store_true", help="check the data only")
    arguments = parser.parse_args()
    with tensorboard(arguments.out) as server:
        complaints = problems(server)
        for complaint in complaints:
            sys.stderr.write(f"{complaint}\n")
        if not arguments.no_pictures:
            for file in photograph(server, arguments.images):
                sys.stdout.write(f"{file}: {file.stat().st_size / 1000:.0f} kB\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

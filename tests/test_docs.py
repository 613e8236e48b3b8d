"""What the documentation shows runs: Python, commands, configurations, formulas, links."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_stable import cli
from lightning_stable.commands import lightning
from lightning_stable.models import LanguageModel

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SLOW = ("docs/export.md", "docs/example-feed-forward-onnx.md")  # export and compare models
EXAMPLE = str(ROOT / "examples" / "fit.yaml")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def in_all(language: str) -> list[Any]:
    """Every block of a language, named by its page."""
    return [pytest.param(block, id=f"{page}-{i}") for page in PAGES for i, block in enumerate(blocks(page, language))]


class Tokens(LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        tokens = torch.randint(7, (2, 4, 6))
        return DataLoader([(tokens[0], tokens[1])] * 2, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES])
def test_code_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": LanguageModel(7, hidden_size=6, embedding_size=8), "data": Tokens()}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


class Parsed(LightningCLI):
    """Reads the command line and runs nothing."""

    def instantiate_classes(self) -> None:
        raise InterruptedError


def commands(block: str) -> list[list[str]]:
    """The arguments of every ``lightning-stable`` in a block of shell."""
    lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("lightning-stable") + 1 :] for line in lines if "lightning-stable" in line]


@pytest.mark.parametrize("block", in_all("bash"))
def test_commands_are_understood(block: str) -> None:
    assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0
    for arguments in commands(block):
        if arguments[0] not in lightning.COMMANDS:
            # The folder is the reader's, and has to exist.
            cli.build_parser().parse_args(["." if argument == "DIR" else argument for argument in arguments])
        elif "--print_config" not in arguments:
            # The file it names is the reader's; another takes its place.
            given = [EXAMPLE if argument.endswith(".yaml") else argument for argument in arguments]
            given = [argument for argument in given if not argument.endswith(".ckpt") and argument != "--ckpt_path"]
            with pytest.raises(InterruptedError):
                Parsed(args=given, parser_kwargs={"exit_on_error": False})


@pytest.mark.parametrize("block", in_all("yaml"))
def test_configurations_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole one by itself; a part of one on top of the example."""
    monkeypatch.chdir(tmp_path)
    config, first = tmp_path / "config.yaml", [] if "model" in yaml.safe_load(block) else ["--config", EXAMPLE]
    config.write_text(block)
    few = [f"--trainer.limit_{name}_batches=2" for name in ("train", "val")] + ["--trainer.accelerator=cpu"]
    few += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    assert cli.main(["--traceback", "fit", *first, "--config", str(config), *few]) == 0
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_script_for_several_processes_runs(nodes: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "integrate.md").read_text()
    (script,) = re.findall(r"^```python title=\"train.py\"\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(script)
    one, two = (
        shlex.split(line.replace("\\\n", ""))
        for line in re.findall(r"^torchrun (.*?train.py)", page, re.DOTALL | re.MULTILINE)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{free.getsockname()[1]}"
    options = [option.replace("first-machine:29500", here) for option in (one if nodes == 1 else two)]
    options = [re.sub("per-node=4$", f"per-node={2 // nodes}", option) for option in options]
    few = {"DEVICES": 2 // nodes, "LIMIT_TRAIN_BATCHES": 2, "LIMIT_VAL_BATCHES": 1, "NUM_SANITY_VAL_STEPS": 0}
    trainer = {f"PL_TRAINER_{name}": str(value) for name, value in {**few, "ACCELERATOR": "cpu"}.items()}
    environment = {**os.environ, **trainer, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    running = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(nodes)
    ]
    try:
        output = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    out, errors = ("".join(texts) for texts in zip(*output, strict=True))
    assert [process.returncode for process in running] == [0] * nodes, errors
    assert "MEMBER: 2/2" in errors
    assert out.count("derived") == 1
    assert len(list(tmp_path.rglob("*.ckpt"))) == 1


def site(name: str) -> Any:
    """A script of the site."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_formulas_can_be_drawn(page: str) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    formulas = site("formulas")
    for found in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", prose, flags=re.DOTALL):
        assert "<path" in formulas.svg(" ".join("".join(found).split()))


def test_a_formula_stands_on_its_line() -> None:
    formulas = site("formulas")
    drawn = formulas.on_page_content(r'<p><span class="arithmatex">\(y &lt; x\)</span></p>')
    assert re.search(r'aria-label="y &lt; x" style="width:[\d.]+em;height:[\d.]+em;vertical-align:-0\.\d+em"', drawn)
    with pytest.raises(ValueError, match="nothing_known"):
        formulas.svg(r"\nothing_known")


def test_references_of_docstrings_become_links() -> None:
    pytest.importorskip("griffe")
    link = site("roles").link
    assert link("see :func:`~a.b.c`.") == 'see <autoref optional identifier="a.b.c"><code>c</code></autoref>.'
    assert 'identifier="p.K.report"><code>report<' in link(":attr:`report`", "p.K.")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api.html").read_text()
    assert 'id="lightning_stable.callbacks.StabilityProjectionCallback"' in reference
    assert not re.search(r":(?:func|class|attr|meth):", reference)
    pages = "".join(page.read_text() for page in tmp_path.glob("*.html"))
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?:', pages)  # nothing is fetched by a reader


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_every_page_is_in_the_site() -> None:
    nav = re.findall(r"\b([\w-]+\.md)\b", (ROOT / "mkdocs.yml").read_text())
    assert {page.removeprefix("docs/") for page in PAGES[1:]} <= set(nav)


def test_the_map_for_contributors_names_what_exists() -> None:
    """Every file that CONTRIBUTING.md names, by its path or in the room that the line is about."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"[\w/]*\w\.(?:py|yaml|toml)\b", text))
    folders = [path for path in ROOT.iterdir() if not path.name.startswith(".venv")]
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (folder, *folder.rglob("*"))]
    missing = {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)}
    assert not missing

"""What installs is what the tree holds, and importing it costs no more than it must."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_stable

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(*lines: str) -> str:
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_packages_are_those_of_the_tree() -> None:
    """The list is explicit, because two folders stand at the root; a new sub-package must not be forgotten."""
    folders = {"lightning_stable": "lightning_stable"} | PROJECT["tool"]["setuptools"]["package-dir"]
    found = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(found) == sorted(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_folders_at_the_root_have_one_name(name: str) -> None:
    """Under the bare name, which the root of a checkout offers, every class would exist twice."""
    with pytest.raises(ImportError, match=rf"Import this package as `lightning_stable\.{name}`\. Got `{name}`"):
        importlib.import_module(name)
    package = importlib.import_module(f"lightning_stable.{name}")
    for public in package.__all__:
        assert getattr(package, public).__module__.startswith(f"lightning_stable.{name}")


def test_version_is_read_from_its_one_place() -> None:
    """By setuptools, which takes a literal from the text of the module and imports nothing."""
    pytest.importorskip("setuptools")
    assert "version" not in PROJECT["project"]
    found = python(
        "import sys",
        "from setuptools.config.pyprojecttoml import read_configuration",
        "print(read_configuration('pyproject.toml')['project']['version'], 'torch' in sys.modules)",
    )
    assert found.split()[-2:] == [lightning_stable.__version__, "False"]


def test_the_version_is_the_one_that_is_cited_and_described() -> None:
    assert f"\nversion: {lightning_stable.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    assert newest in (lightning_stable.__version__, "Unreleased")


def test_the_core_imports_no_lightning() -> None:
    """Nor does the package itself load what draws and measures."""
    above = ("callbacks", "datamodules", "experiments", "models", "shadow", "tensorboard", "testing")
    core = [name for name in PROJECT["tool"]["setuptools"]["packages"] if not set(above) & set(name.split("."))]
    loaded = python("import sys, lightning_stable", "print(*sys.modules)").split()
    assert not {"lightning", "matplotlib", "torchmetrics"} & set(loaded)
    loaded = python(f"import sys, {', '.join(core)}", "print(*sys.modules)").split()
    assert set(core) <= set(loaded)
    assert not {"lightning", "pytorch_lightning", "lightning_fabric"} & set(loaded)


def test_the_oldest_environment_has_the_oldest_versions() -> None:
    """``make test-oldest`` promises something for what is declared, not for what happened to be installed."""
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    declared = dict(re.sub(r"\[.*\]", "", line).split(">=") for line in PROJECT["project"]["dependencies"])
    assert {name: pinned.get(name) for name in declared} == declared


@pytest.mark.parametrize("package", PROJECT["tool"]["setuptools"]["packages"])
def test_public_names_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))

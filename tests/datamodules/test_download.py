import os
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import pytest

from lightning_stable.datamodules import DownloadError, fetch
from lightning_stable.datamodules.download import cache_dir
from tests.datamodules.server import Server

DATA = bytes(range(256)) * 1000
SHA = sha256(DATA).hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_loaded_once_and_then_taken_offline(server: Server, tmp_path: Path) -> None:
    server.content["data"] = DATA
    path = tmp_path / "new" / "data"
    assert fetch(server.url + "data", path, SHA.upper()) == path
    assert path.read_bytes() == DATA
    assert fetch("http://127.0.0.1:9/nobody", path, SHA) == path
    assert server.requests == ["/data"]
    assert files(tmp_path) == ["new/data"]


@pytest.mark.parametrize(
    ("cut", "chunked"), [(0, False), (1, False), (100_000, False), (len(DATA) - 1, False), (1, True), (100_000, True)]
)
def test_a_cut_connection_leaves_nothing(server: Server, tmp_path: Path, cut: int, chunked: bool) -> None:
    """Without a checksum, so that only the missing end can tell."""
    server.content["data"] = DATA
    server.cut, server.chunked = cut, chunked
    path = tmp_path / "data"
    with pytest.raises(DownloadError, match=rf"data could not be downloaded .* put it at {path}\. Got: "):
        fetch(server.url + "data", path)
    assert files(tmp_path) == []
    server.cut = None
    assert fetch(server.url + "data", path, SHA).read_bytes() == DATA


def test_a_cut_connection_says_how_far_it_came(server: Server, tmp_path: Path) -> None:
    server.content["data"], server.cut = DATA, 1000
    with pytest.raises(DownloadError, match="after 1000 of 256000 bytes"):
        fetch(server.url + "data", tmp_path / "data", SHA)


def test_a_killed_download_is_not_mistaken_for_data(server: Server, tmp_path: Path) -> None:
    """Killed at a point where no clean-up can run, so a part of the file remains under another name."""
    server.content["data"] = DATA

    def load() -> None:
        fetch(server.url + "data", tmp_path / "data", check=lambda part: os._exit(9))

    killed = get_context("fork").Process(target=load)
    killed.start()
    killed.join(60)
    assert killed.exitcode == 9
    (left,) = files(tmp_path)
    assert left != "data"
    assert fetch(server.url + "data", tmp_path / "data", SHA).read_bytes() == DATA
    assert files(tmp_path) == ["data"]  # what was left has been swept


@pytest.mark.parametrize("slow", ["body", "headers"])
def test_a_download_that_trickles_ends(server: Server, tmp_path: Path, slow: str) -> None:
    server.content["data"], server.trickle = DATA, slow
    with pytest.raises(DownloadError, match=r"could not be downloaded .* 0\.3 seconds"):
        fetch(server.url + "data", tmp_path / "data", SHA, max_seconds=0.3)
    assert files(tmp_path) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_download_that_is_too_large_ends(server: Server, tmp_path: Path, chunked: bool) -> None:
    server.content["data"], server.chunked = DATA, chunked
    with pytest.raises(DownloadError, match=r"should have at most 200000 bytes but has (256000|more)"):
        fetch(server.url + "data", tmp_path / "data", SHA, max_bytes=200_000)
    assert files(tmp_path) == []
    assert fetch(server.url + "data", tmp_path / "data", SHA, max_bytes=len(DATA)).read_bytes() == DATA


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    server.content["data"] = DATA[:-1] + b"x"
    with pytest.raises(DownloadError, match=rf"sha256 should be {SHA} but is [0-9a-f]{{64}}"):
        fetch(server.url + "data", tmp_path / "data", SHA)
    assert files(tmp_path) == []


def test_check_refuses_before_the_file_bears_its_name(server: Server, tmp_path: Path) -> None:
    server.content["data"] = DATA
    seen = []

    def check(part: Path) -> None:
        seen.append(part.read_bytes())
        assert not (tmp_path / "data").exists()
        raise ValueError("no good")

    with pytest.raises(DownloadError, match="no good"):
        fetch(server.url + "data", tmp_path / "data", check=check)
    assert seen == [DATA]
    assert files(tmp_path) == []


def test_missing_file_and_missing_server(server: Server, tmp_path: Path) -> None:
    for url, reason in ((server.url + "data", "404"), ("http://127.0.0.1:9/data", "refused"), ("nonsense", "url")):
        with pytest.raises(DownloadError, match=rf"put it at {tmp_path}/data\. Got: .*{reason}"):
            fetch(url, tmp_path / "data")
    assert files(tmp_path) == []


def test_simultaneous_downloads_do_not_disturb_one_another(server: Server, tmp_path: Path) -> None:
    server.content["data"] = DATA
    threads = [Thread(target=fetch, args=(server.url + "data", tmp_path / "data", SHA)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "data").read_bytes() == DATA
    assert files(tmp_path) == ["data"]


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "lightning_stable"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "lightning_stable"

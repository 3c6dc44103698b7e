import base64
import contextlib
import email.utils
import hashlib
import http.server
import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile

import numpy as np
import pytest

from data_pipelines import download
from data_pipelines.sources import public_sets, transfer
from data_pipelines.sources.public_sets import PublicFile, PublicSet

CONTENT = np.random.default_rng(0).bytes(300_000)


class Origin(http.server.ThreadingHTTPServer):
    """Serves bytes by path, well or badly, and remembers what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent: list[int] = []  # bytes of each answer
        self.statuses: list[int] = []  # of the next answers, before any good one
        self.cuts: list[int] = []  # after so many bytes the next connections break
        self.knows_ranges = True
        self.tells_validators = True
        self.pause_seconds = 0.0
        self.block_bytes = 1 << 14

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Origin

    def log_message(self, *args):
        pass

    def do_GET(self):
        origin = self.server
        origin.asked.append((self.path, dict(self.headers)))
        if origin.statuses:
            return self.send_error(origin.statuses.pop(0))
        if self.path in origin.redirects:
            self.send_response(302)
            self.send_header("Location", origin.redirects[self.path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path not in origin.files:
            return self.send_error(404)
        content = origin.files[self.path]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and origin.knows_ranges:
            if self.headers.get("If-Range", tag) == tag:
                start = int(wanted[1])
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if origin.tells_validators:
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", email.utils.formatdate(0, usegmt=True))
        if start:
            end = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if origin.cuts:
            body = body[: origin.cuts.pop(0)]
        origin.sent.append(0)
        with contextlib.suppress(ConnectionError):
            for i in range(0, len(body), origin.block_bytes):
                block = body[i : i + origin.block_bytes]
                self.wfile.write(block)
                origin.sent[-1] += len(block)
                time.sleep(origin.pause_seconds)


@pytest.fixture
def origin(monkeypatch):
    monkeypatch.setattr(transfer, "WAITS_SECONDS", (0, 0))
    with serving() as served:
        yield served


@contextlib.contextmanager
def serving():
    served = Origin()
    served.files["/data.gz"] = CONTENT
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def a_file(origin: Origin, name: str = "data.gz", **changes) -> PublicFile:
    return PublicFile(name=name, **({"urls": (origin.url(name),)} | changes))


def fetch(file: PublicFile, raw: pathlib.Path, **headers: str) -> str:
    return download.fetch(file, raw, headers=headers)


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_whole_file_arrives_and_is_not_fetched_again(origin, tmp_path):
    file = a_file(origin, checksum=md5(CONTENT))
    assert fetch(file, tmp_path) == f"data.gz: 300,000 bytes, {md5(CONTENT)}"
    assert (tmp_path / "data.gz").read_bytes() == CONTENT
    assert names(tmp_path) == {"data.gz", "download.json"}
    assert json.loads((tmp_path / "download.json").read_text())["data.gz"] == {
        "url": origin.url("data.gz"),
        "size_bytes": 300_000,
        "checksum": md5(CONTENT),
        "files": {"data.gz": 300_000},
    }
    assert fetch(file, tmp_path) == "data.gz: there already"
    assert len(origin.asked) == 1
    (tmp_path / "data.gz").unlink()
    fetch(file, tmp_path)
    assert len(origin.asked) == 2


def test_without_a_published_checksum_the_found_one_is_told(origin, tmp_path):
    told = fetch(a_file(origin), tmp_path)
    assert f"sha256:{hashlib.sha256(CONTENT).hexdigest()} (as found" in told


def test_wrong_checksum_leaves_no_file_and_tells_both(origin, tmp_path):
    wrong = md5(b"another")
    with pytest.raises(download.DataError) as error:
        fetch(a_file(origin, checksum=wrong), tmp_path)
    assert md5(CONTENT) in str(error.value) and wrong in str(error.value)
    assert names(tmp_path) == set()


def test_file_put_there_by_hand_is_checked_and_kept(origin, tmp_path):
    (tmp_path / "data.gz").write_bytes(CONTENT[:-1])
    file = a_file(origin, checksum=md5(CONTENT))
    with pytest.raises(download.DataError, match=r"data.gz has md5:"):
        fetch(file, tmp_path)
    assert names(tmp_path) == {"data.gz"}
    (tmp_path / "data.gz").write_bytes(CONTENT)
    fetch(file, tmp_path)
    assert not origin.asked


KILLED = """
import pathlib, sys
from data_pipelines import download
from data_pipelines.sources import public_sets
from data_pipelines.sources.public_sets import PublicFile, PublicSet
file = PublicFile(name="data.gz", urls=(sys.argv[1],), checksum=sys.argv[2])
public_sets.SETS["made_up"] = PublicSet(
    pipeline="criteo", page="nowhere", licence="none", files=(file,)
)
download.main(["made_up", f"--raw={sys.argv[3]}", "--accept_licence"])
"""


def test_killed_download_goes_on_where_it_stopped(origin, tmp_path):
    origin.pause_seconds, origin.block_bytes = 0.05, 30_000
    raw = tmp_path / "raw"
    command = [
        *(sys.executable, "-c", KILLED),
        *(origin.url("data.gz"), md5(CONTENT), str(raw)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    part = raw / "data.gz.part"
    deadline = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < 60_000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert 60_000 <= kept < 300_000
    assert names(raw) == {"data.gz.part", "data.gz.part.json"}
    origin.pause_seconds = 0
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"data.gz: 300,000 bytes, {md5(CONTENT)}" in output
    assert "Licence: none" in output
    assert origin.ranges() == [None, f"bytes={kept}-"]
    assert origin.sent[1] == 300_000 - kept
    assert (raw / "data.gz").read_bytes() == CONTENT
    assert names(raw) == {"data.gz", "download.json"}


def test_connection_that_breaks_is_made_again(origin, tmp_path):
    origin.cuts = [100_000, 0, 50_000]
    fetch(a_file(origin, checksum=md5(CONTENT)), tmp_path)
    assert origin.ranges() == [
        *(None, "bytes=100000-", "bytes=100000-", "bytes=150000-")
    ]
    assert sum(origin.sent) == 300_000


def test_busy_server_is_asked_again(origin, tmp_path):
    origin.statuses = [503, 429]
    fetch(a_file(origin, checksum=md5(CONTENT)), tmp_path)
    assert len(origin.asked) == 3


def test_connections_without_progress_end_with_what_has_arrived(origin, tmp_path):
    origin.cuts = [100_000, 0, 0, 0]
    file = a_file(origin, checksum=md5(CONTENT))
    with pytest.raises(
        download.DataError, match=r"ended early, 3 times .* kept in data.gz.part"
    ):
        fetch(file, tmp_path)
    assert (tmp_path / "data.gz.part").stat().st_size == 100_000
    origin.cuts = []
    fetch(file, tmp_path)
    assert origin.sent[-1] == 200_000


def test_server_without_ranges_starts_anew(origin, tmp_path):
    origin.cuts, origin.knows_ranges = [100_000], False
    fetch(a_file(origin, checksum=md5(CONTENT)), tmp_path)
    assert origin.ranges() == [None, "bytes=100000-"]
    assert origin.sent == [100_000, 300_000]
    assert (tmp_path / "data.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("tells_validators", [True, False])
def test_another_version_is_not_mixed_in(origin, tmp_path, tells_validators):
    """If-Range prevents it, or the size of the whole, which differs."""
    origin.tells_validators = tells_validators
    origin.cuts = [100_000, 0, 0]
    with pytest.raises(download.DataError):
        fetch(a_file(origin), tmp_path)
    origin.files["/data.gz"] = newer = CONTENT[::-1][:-7]
    fetch(a_file(origin), tmp_path)
    assert origin.ranges()[3] == "bytes=100000-"
    assert (tmp_path / "data.gz").read_bytes() == newer


def test_part_of_another_url_is_not_gone_on_with(origin, tmp_path):
    origin.cuts = [100_000, 0, 0]
    with pytest.raises(download.DataError):
        fetch(a_file(origin), tmp_path)
    origin.files["/moved"] = newer = CONTENT[::-1]
    fetch(a_file(origin, urls=(origin.url("moved"),)), tmp_path)
    assert origin.ranges()[-1] is None
    assert (tmp_path / "data.gz").read_bytes() == newer


def test_part_longer_than_the_file_starts_anew(origin, tmp_path):
    origin.cuts = [100_000, 0, 0]
    with pytest.raises(download.DataError):
        fetch(a_file(origin), tmp_path)
    origin.tells_validators = False
    origin.files["/data.gz"] = CONTENT[:50_000]
    (tmp_path / "data.gz.part.json").write_text(
        json.dumps({"url": origin.url("data.gz"), "validator": "", "total": 300_000})
    )
    fetch(a_file(origin), tmp_path)
    assert (tmp_path / "data.gz").read_bytes() == CONTENT[:50_000]


def test_missing_file_is_told_at_once(origin, tmp_path):
    with pytest.raises(
        download.DataError, match=r"gone.gz: HTTP 404 .* may have moved"
    ):
        fetch(a_file(origin, "gone.gz"), tmp_path)
    assert len(origin.asked) == 1 and names(tmp_path) == set()


def test_second_url_serves_where_the_first_does_not(origin, tmp_path):
    origin.files["/cut"] = CONTENT[:1000]  # whole for all that its server says
    urls = ("http://127.0.0.1:1/", *map(origin.url, ("gone", "cut", "data.gz")))
    fetch(a_file(origin, urls=urls, checksum=md5(CONTENT)), tmp_path)
    assert [path for path, _ in origin.asked] == ["/gone", "/cut", "/data.gz"]
    assert (tmp_path / "data.gz").read_bytes() == CONTENT
    other = a_file(origin, urls=urls[:3], checksum=md5(CONTENT), name="other.gz")
    with pytest.raises(download.DataError) as error:
        fetch(other, tmp_path)
    assert len(str(error.value).splitlines()) == 3  # one problem a URL


def test_full_disk_is_told_before_the_first_byte(origin, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 299_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        download.DataError, match=r"needs 300,000 bytes more .* 299,999 are free"
    ):
        fetch(a_file(origin), tmp_path)
    assert names(tmp_path) == set()


def test_disk_that_fills_up_keeps_what_has_arrived(origin, tmp_path, monkeypatch):
    real = transfer._write

    def full(output, block, part):
        if output.tell() <= 100_000:
            return real(output, block, part)
        with open("/dev/full", "wb", buffering=0) as disk:
            real(disk, block, part)

    monkeypatch.setattr(transfer, "_write", full)
    with pytest.raises(download.DataError, match=r"No space left .* make room"):
        fetch(a_file(origin), tmp_path)
    assert len(origin.asked) == 1
    assert (tmp_path / "data.gz.part").stat().st_size > 100_000
    monkeypatch.undo()
    fetch(a_file(origin), tmp_path)
    assert (tmp_path / "data.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("name, pack", [("set.zip", zipped), ("set.tar.gz", tarred)])
def test_archive_is_unpacked_and_deleted(origin, tmp_path, name, pack):
    members = {"set/a.csv": b"1,2\n", "set/deep/b.csv": b"3\n"}
    origin.files[f"/{name}"] = packed = pack(members)
    file = a_file(origin, name, checksum=md5(packed), unpacked={"b.csv": md5(b"3\n")})
    assert fetch(file, tmp_path).endswith(", 2 files unpacked")
    assert names(tmp_path) == {"set", "download.json"}
    for member, content in members.items():
        assert (tmp_path / member).read_bytes() == content
    assert fetch(file, tmp_path).endswith("there already")
    (tmp_path / "set/deep/b.csv").write_bytes(b"")
    fetch(file, tmp_path)  # not whole any more, so it is fetched again
    assert (tmp_path / "set/deep/b.csv").read_bytes() == b"3\n"
    assert len(origin.asked) == 2


@pytest.mark.parametrize("name, pack", [("set.zip", zipped), ("set.tar.gz", tarred)])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_member_outside_the_folder_is_refused(
    origin, tmp_path, name, pack, is_absolute
):
    raw = tmp_path / "raw"
    raw.mkdir()
    outside = str(tmp_path / "x") if is_absolute else "../x"
    origin.files[f"/{name}"] = pack({"good": b"1", outside: b"2"})
    if name.endswith(".tar.gz") and is_absolute:
        fetch(a_file(origin, name), raw)  # tar's way: the leading slash goes
        assert (raw / outside[1:]).read_bytes() == b"2"
    else:
        with pytest.raises(download.DataError, match=r"cannot be unpacked: .*outside"):
            fetch(a_file(origin, name), raw)
        assert names(raw) == set()
    assert names(tmp_path) == {"raw"}


def test_damaged_members_are_not_kept(origin, tmp_path):
    origin.files["/set.zip"] = zipped({"train.csv": b"1", "test.csv": b"2"})
    file = a_file(origin, "set.zip", unpacked={"train.csv": md5(b"3")})
    with pytest.raises(download.DataError, match=r"train.csv has md5:"):
        fetch(file, tmp_path)
    missing = a_file(origin, "set.zip", unpacked={"valid.csv": md5(b"3")})
    with pytest.raises(download.DataError, match=r"valid.csv is missing in it"):
        fetch(missing, tmp_path)
    origin.files["/set.zip"] = b"<html>log in</html>"
    with pytest.raises(download.DataError, match="not a zip file"):
        fetch(file, tmp_path)
    assert names(tmp_path) == set()


def test_archive_too_large_for_the_disk_is_not_unpacked(origin, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1_000_000))
    origin.files["/set.zip"] = packed.getvalue()
    file = a_file(origin, "set.zip", checksum=md5(packed.getvalue()))
    usage = shutil._ntuple_diskusage(10**9, 10**9, 500_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(
            download.DataError, match=r"unpacking set.zip needs 1,000,000 bytes"
        ):
            fetch(file, tmp_path)
    assert names(tmp_path) == {"set.zip"}  # as published: unpacking is what is left
    fetch(file, tmp_path)
    assert names(tmp_path) == {"zeros", "download.json"} and len(origin.asked) == 1


def test_credentials_go_to_the_host_of_the_url_only(origin, tmp_path):
    with serving() as elsewhere:
        origin.redirects["/data.gz"] = elsewhere.url("data.gz")
        elsewhere.cuts = [100_000]
        fetch(a_file(origin), tmp_path, Authorization="Bearer secret")
        assert (tmp_path / "data.gz").read_bytes() == CONTENT
        for _, headers in origin.asked:
            assert headers["Authorization"] == "Bearer secret"
        assert elsewhere.ranges() == [None, "bytes=100000-"]
        for _, headers in elsewhere.asked:
            assert "Authorization" not in headers


@pytest.fixture
def made_up_set(origin, monkeypatch):
    files = (a_file(origin), a_file(origin, "other.gz"))
    origin.files["/other.gz"] = b"2"
    made_up = PublicSet(
        pipeline="avazu",
        page="https://example.org/set",
        licence="For tests.\nNothing else.",
        files=files,
        needs_kaggle=True,
    )
    monkeypatch.setitem(public_sets.SETS, "made_up", made_up)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    return made_up


def test_licence_is_shown_and_must_be_accepted(
    made_up_set, origin, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    raw = tmp_path / "raw"
    command = ["made_up", f"--raw={raw}"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))  # no terminal
    with pytest.raises(SystemExit, match="not accepted; pass --accept_licence"):
        download.main(command)
    assert "Licence: For tests.\nNothing else." in capsys.readouterr().out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "no")
    with pytest.raises(SystemExit, match="not accepted; nothing is fetched"):
        download.main(command)
    assert not raw.exists() and not origin.asked
    monkeypatch.setattr("builtins.input", lambda prompt: "Yes ")
    download.main(command)
    assert names(raw) == {"data.gz", "other.gz", "download.json"}


def test_one_file_of_a_set_is_fetched(made_up_set, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    command = ["made_up", f"--raw={tmp_path}", "--accept_licence"]
    with pytest.raises(SystemExit, match=r"--file=otter.gz: .*other.gz"):
        download.main([*command, "--file=otter.gz"])
    download.main([*command, "--file=other.gz"])
    assert names(tmp_path) == {"other.gz", "download.json"}


def test_kaggle_token_is_taken_from_where_kaggle_keeps_it(
    made_up_set, origin, tmp_path, monkeypatch
):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    basic = "Basic " + base64.b64encode(b"ann:key").decode()

    def authorization() -> str:
        raw = tmp_path / f"raw{len(origin.asked)}"
        download.download("made_up", raw, accept_licence=True)
        return origin.asked[-1][1]["Authorization"]

    with pytest.raises(download.DataError, match="needs a Kaggle token"):
        authorization()
    (tmp_path / "kaggle").mkdir()
    keys = json.dumps({"username": "ann", "key": "key"})
    (tmp_path / "kaggle" / "kaggle.json").write_text(keys)
    assert authorization() == basic
    monkeypatch.setenv("KAGGLE_USERNAME", "bob")
    monkeypatch.setenv("KAGGLE_KEY", "other")
    assert authorization() == "Basic " + base64.b64encode(b"bob:other").decode()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    assert authorization() == "Bearer token"


def test_refused_credentials_point_to_the_terms(made_up_set, origin, tmp_path):
    origin.statuses = [403]
    with pytest.raises(download.DataError, match=r"HTTP 403 .* accept its terms"):
        fetch(made_up_set.files[0], tmp_path)


def test_unknown_set_is_told(tmp_path):
    with pytest.raises(
        SystemExit, match=r"'criteo_kagle' is no public set.*criteo_kaggle"
    ):
        download.main(["criteo_kagle", f"--raw={tmp_path}"])


def test_list_tells_size_page_and_licence(capsys):
    download.main(["--list"])
    told = capsys.readouterr().out
    for name, chosen in public_sets.SETS.items():
        assert f"{name}: " in told and chosen.page in told
        assert textwrap.indent(chosen.licence, "  ") in told
    assert "kuairand_pure: 1 files, 47 MB; for data_pipelines.kuairand" in told


def test_every_public_file_is_well_described():
    digits = {"md5": 32, "sha256": 64}
    seen = set()
    for chosen in public_sets.SETS.values():
        assert len(chosen.licence.splitlines()) == 2
        assert len({file.name for file in chosen.files}) == len(chosen.files)
        for file in chosen.files:
            assert file.urls and all(url.startswith("https://") for url in file.urls)
            sums = [file.checksum] if file.checksum else []
            for checksum in (*sums, *file.unpacked.values()):
                kind, digest = checksum.split(":")
                assert re.fullmatch(rf"[0-9a-f]{{{digits[kind]}}}", digest)
                assert checksum not in seen
                seen.add(checksum)

"""A server that misbehaves in every way that a download meets, and archives that must not be unpacked."""

import errno
import gzip
import hashlib
import io
import json
import sys
import tarfile
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from ibsgl import cli
from ibsgl.data import download
from ibsgl.data.download import TRIES, Archive, fetch
from ibsgl.errors import DownloadError
from ibsgl.provenance import folder_digest

FILES = {
    "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": b"000001\n",
    "VOCdevkit/VOC2007/Annotations/000001.xml": b"<annotation/>",
    # Incompressible and larger than several pieces of a download.
    "VOCdevkit/VOC2007/JPEGImages/000001.jpg": np.random.default_rng(0).bytes(400_000),
}


def tar(*members, files=None):
    """Bytes of a plain tar of ``files`` and of further ``TarInfo`` objects, or (name, content) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for member in [*(files or {}).items(), *members]:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_194_307_200
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


WHOLE = tar(files=FILES)


def described(content, name="set.tar"):
    return Archive(name=name, md5=hashlib.md5(content).hexdigest(), bytes=len(content))


def tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


UNPACKED = {name.removeprefix("VOCdevkit/VOC2007/"): content for name, content in FILES.items()}


class Server:
    """Answers each request as the next of ``script`` says, and well when that is used up; notes what was asked."""

    def __init__(self, content, *script, ranges=True):
        self.content, self.script, self.ranges = content, list(script), ranges
        self.asked = []

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append(int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0)
        start = self.asked[-1] if self.ranges else 0
        act = self.script.pop(0) if self.script else {}
        if start >= len(self.content) and start:
            act = {"status": 416}
        if status := act.get("status"):
            handler.send_response(status)
            handler.send_header("Content-Length", "4")
            handler.end_headers()
            handler.wfile.write(b"busy")
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if act.get("length", True):
            handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.end_headers()
        handler.wfile.write(body[: act.get("cut", len(body))])
        if "cut" in act:
            handler.wfile.flush()
            handler.close_connection = True


@pytest.fixture
def serve(monkeypatch):
    """``serve(content, *script)`` → (the server's notes, its address)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = []

    def start(content, *script, **options):
        server = Server(content, *script, **options)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                # A client that has seen enough hangs up.
                with suppress(ConnectionError):
                    server.answer(self)

            def log_message(self, *_):
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((http, thread))
        return server, f"http://127.0.0.1:{http.server_port}/voc/"

    yield start
    for http, thread in running:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def place(tmp_path):
    """(root, download folder)"""
    return tmp_path / "voc" / "VOC2007", tmp_path / "downloads"


def get(place, *mirrors, content=WHOLE, archives=None, **options):
    root, folder = place
    archives = archives or [described(content)]
    return fetch(root, archives, mirrors=mirrors, folder=folder, pause=0, **options)


def refusal(place, *mirrors, **options):
    """The one line with which a fetch fails, having left nothing at the target or beside it."""
    with pytest.raises(DownloadError) as error:
        get(place, *mirrors, **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in place[0].parent.glob("*") if not path.name.endswith(".lock")] == []
    return str(error.value)


@contextmanager
def interrupted_when(condition, monkeypatch):
    """Within, the bar's update is Ctrl-C as soon as ``condition`` holds for the number of updates."""
    real, count = download.tqdm.update, 0

    def update(bar, n=1):
        nonlocal count
        count += 1
        if condition(count):
            raise KeyboardInterrupt
        return real(bar, n)

    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", update)
        yield


def test_two_archives_make_one_folder(place, serve, tmp_path):
    (trainval, at_trainval), (test, at_test) = (
        serve(WHOLE),
        serve(other := tar(("VOCdevkit/VOC2007/JPEGImages/2.jpg", b"2"))),
    )
    archives = [described(WHOLE, "trainval.tar"), described(other, "test.tar")]
    assert get(place, at_test, at_trainval, archives=archives)
    assert tree(place[0]) == UNPACKED | {"JPEGImages/2.jpg": b"2"}
    # The first mirror's file of the other archive's name has another size: refused before it is downloaded.
    assert test.asked == [0, 0]
    assert trainval.asked == [0]
    assert sorted(path.name for path in place[1].iterdir() if not path.name.startswith(".")) == [
        "test.tar",
        "trainval.tar",
    ]
    assert not list(tmp_path.rglob("*.part"))


def test_a_cut_connection_goes_on_where_it_stopped(place, serve):
    server, address = serve(WHOLE, {"cut": 150_000}, {"cut": 100_000})
    assert get(place, address)
    assert tree(place[0]) == UNPACKED
    first, second, third = server.asked
    assert first == 0
    # At most one piece of 64 KiB is lost.
    assert 150_000 - (1 << 16) <= second <= 150_000
    assert second + 100_000 - (1 << 16) <= third <= second + 100_000


def test_an_end_without_a_stated_length_is_a_cut_too(place, serve):
    server, address = serve(WHOLE, {"cut": 150_000, "length": False})
    assert get(place, address)
    assert server.asked == [0, 150_000]


def test_a_server_that_ignores_ranges_sends_all_again(place, serve):
    server, address = serve(WHOLE, {"cut": 150_000}, ranges=False)
    assert get(place, address)
    assert server.asked[0] == 0 < server.asked[1]
    assert tree(place[0]) == UNPACKED


def test_busy_then_well(place, serve):
    server, address = serve(WHOLE, {"status": 503}, {"status": 503})
    assert get(place, address)
    assert server.asked == [0, 0, 0]


def test_pauses_double_and_end(place, serve, monkeypatch):
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    server, address = serve(WHOLE, *[{"status": 503}] * 20)
    with pytest.raises(DownloadError, match=f"{TRIES} tries in a row failed, the last with 503 Service Unavailable"):
        fetch(place[0], [described(WHOLE)], mirrors=[address], folder=place[1], pause=2)
    assert slept == [2, 4, 8, 16]
    assert len(server.asked) == TRIES == 5


def test_cuts_that_bring_nothing_end(place, serve):
    server, address = serve(WHOLE, *[{"cut": 150_000}] * 99, ranges=False)
    # The first try brings something, the others end at the same byte.
    assert f"{TRIES} tries in a row failed" in refusal(place, address)
    assert len(server.asked) == TRIES + 1


def test_more_cuts_than_tries_are_survived_as_long_as_each_brings_something(place, serve):
    server, address = serve(WHOLE, *[{"cut": 70_000}] * 6)
    assert get(place, address)
    assert len(server.asked) > TRIES
    assert tree(place[0]) == UNPACKED


def test_a_server_that_sends_nothing_is_given_up(place, serve):
    silence = threading.Event()

    class Silent(dict):
        def get(self, key, default=None):
            return silence.wait(10) and default

    _, address = serve(WHOLE, *[Silent()] * TRIES)
    _, well = serve(WHOLE)
    assert get(place, address, well, timeout=0.05)
    silence.set()


def test_nobody_there_is_one_line_after_the_tries(place, serve):
    # Port 9 of this machine: nothing listens, and nothing beyond 127.0.0.1 is asked.
    said = refusal(place, "http://127.0.0.1:9/voc")
    assert said == (
        f"set.tar: no mirror has it (http://127.0.0.1:9/voc: 5 tries in a row failed, the last with ConnectionError; "
        f"0 bytes are here); start again later, or put the file of {len(WHOLE)} bytes with MD5 "
        f"{hashlib.md5(WHOLE).hexdigest()} at {place[1] / 'set.tar'}"
    )


def test_not_there_is_not_asked_twice(place, serve):
    server, address = serve(WHOLE, {"status": 404})
    assert f"({address}: 404 Not Found)" in refusal(place, address)
    assert server.asked == [0]


def test_a_wrong_file_is_deleted_and_the_next_mirror_asked(place, serve):
    wrong = bytes(len(WHOLE))
    (bad, at_bad), (good, at_good) = serve(wrong), serve(WHOLE)
    expected, found = (hashlib.md5(content).hexdigest() for content in (WHOLE, wrong))
    assert f"({at_bad}: expected MD5 {expected}, found {found})" in refusal(place, at_bad)
    assert [path.name for path in place[1].glob("set*")] == []
    assert get(place, at_bad, at_good)
    assert bad.asked == [0, 0]
    assert good.asked == [0]
    assert tree(place[0]) == UNPACKED


def test_a_truncated_file_is_refused_by_its_size(place, serve):
    server, address = serve(WHOLE[:100_000])
    assert f"({address}: expected {len(WHOLE)} bytes, found 100000)" in refusal(place, address)
    assert server.asked == [0]


def test_a_truncated_file_without_a_stated_length_ends(place, serve):
    server, address = serve(WHOLE[:100_000], *[{"length": False}] * 99)
    assert f"{TRIES} tries in a row failed" in refusal(place, address)
    # The second try asks for what follows and learns that there is nothing (416); then all is asked for, again and again.
    assert server.asked == [0, 100_000, *[0] * (TRIES - 1)]


def test_a_longer_file_is_refused_by_its_size(place, serve):
    _, address = serve(WHOLE + b"more", {"length": False})
    assert f"({address}: expected {len(WHOLE)} bytes, found more)" in refusal(place, address)


def test_a_range_that_was_not_asked_for_is_refused(place, serve, monkeypatch):
    server, address = serve(WHOLE, {"cut": 150_000})
    real = server.answer

    def shifted(handler):
        if server.asked:
            del handler.headers["Range"]
            handler.headers["Range"] = "bytes=7-"
        real(handler)

    server.answer = shifted
    assert "received bytes 7-" in refusal(place, address)


def test_an_interrupted_fetch_leaves_nothing_and_the_next_resumes(place, serve, monkeypatch):
    server, address = serve(WHOLE)
    with interrupted_when(lambda updates: updates == 3, monkeypatch), pytest.raises(KeyboardInterrupt):
        get(place, address)
    assert not place[0].exists()
    part = (place[1] / "set.tar.part").stat().st_size
    assert 0 < part < len(WHOLE)
    assert get(place, address)
    assert server.asked == [0, part]
    assert tree(place[0]) == UNPACKED


def test_a_part_of_something_else_costs_one_more_download_of_the_same_mirror(place, serve):
    server, address = serve(WHOLE)
    place[1].mkdir()
    (place[1] / "set.tar.part").write_bytes(b"x" * 1000)
    assert get(place, address)
    assert server.asked == [1000, 0]


def test_a_part_is_finished_by_another_mirror(place, serve):
    (slow, at_slow), (quick, at_quick) = serve(WHOLE, {"cut": 200_000}, {"status": 404}), serve(WHOLE)
    assert get(place, at_slow, at_quick)
    assert quick.asked == [slow.asked[1]]
    assert slow.asked[1] >= 200_000 - (1 << 16)


def test_a_whole_part_needs_no_network(place):
    place[1].mkdir()
    (place[1] / "set.tar.part").write_bytes(WHOLE)
    assert get(place, "http://127.0.0.1:9/")
    assert tree(place[0]) == UNPACKED


def test_a_part_that_is_too_long_begins_anew(place, serve):
    server, address = serve(WHOLE)
    place[1].mkdir()
    (place[1] / "set.tar.part").write_bytes(WHOLE + b"more")
    assert get(place, address)
    assert server.asked == [0]


def test_a_folder_that_is_there_is_taken_as_it_is(place):
    place[0].mkdir(parents=True)
    (place[0] / "mine").write_text("mine")
    assert not get(place, "http://127.0.0.1:9/")
    assert [path.name for path in place[0].parent.rglob("*")] == ["VOC2007", "mine"]
    assert not place[1].exists()


def test_an_archive_that_is_there_is_taken_and_kept(place):
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(WHOLE)
    assert get(place, "http://127.0.0.1:9/")
    assert tree(place[0]) == UNPACKED
    assert (place[1] / "set.tar").read_bytes() == WHOLE


def test_a_wrong_archive_of_the_users_is_named_and_kept(place, serve):
    _, address = serve(WHOLE)
    place[1].mkdir()
    (mine := place[1] / "set.tar").write_bytes(b"mine")
    assert refusal(place, address) == (
        f"{mine}: expected {len(WHOLE)} bytes, found 4; put the right file there, or delete it so that it is downloaded"
    )
    assert mine.read_bytes() == b"mine"


def test_a_folder_is_a_mirror_and_its_files_stay_where_they_are(place, tmp_path):
    for name, content in (("empty", None), ("wrong", b"wrong"), ("right", WHOLE)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "set.tar").write_bytes(content)
    folders = [str(tmp_path / name) for name in ("empty", "wrong", "right")]
    said = refusal(place, *folders[:2])
    assert f"({folders[0]}: there is no such file; {folders[1]}: expected {len(WHOLE)} bytes, found 5)" in said
    assert get(place, *folders)
    assert tree(place[0]) == UNPACKED
    assert (tmp_path / "wrong" / "set.tar").read_bytes() == b"wrong"
    assert not list(place[1].glob("set*"))


def member(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("../outside", b"x"), "'../outside' would be outside the target"),
        (("VOCdevkit/../../outside", b"x"), "'VOCdevkit/../../outside' would be outside the target"),
        (("VOCdevkit/../inside", b"x"), "'VOCdevkit/../inside' would be outside the target"),
        (("/tmp/ibsgl-outside", b"x"), "'/tmp/ibsgl-outside' would be outside the target"),
        (member("VOCdevkit/link", tarfile.SYMTYPE, "/etc"), "'VOCdevkit/link' is neither a file nor a folder"),
        (member("VOCdevkit/link", tarfile.SYMTYPE, "VOC2007"), "'VOCdevkit/link' is neither a file nor a folder"),
        (
            member("VOCdevkit/link", tarfile.LNKTYPE, "VOCdevkit/VOC2007/JPEGImages/000001.jpg"),
            "'VOCdevkit/link' is neither a file nor a folder",
        ),
        (member("VOCdevkit/zero", tarfile.CHRTYPE), "'VOCdevkit/zero' is neither a file nor a folder"),
        (member("VOCdevkit/disk", tarfile.BLKTYPE), "'VOCdevkit/disk' is neither a file nor a folder"),
        (member("VOCdevkit/pipe", tarfile.FIFOTYPE), "'VOCdevkit/pipe' is neither a file nor a folder"),
    ],
)
def test_nothing_but_files_and_folders_below_the_target(place, tmp_path, bad, reason):
    """The checksum is right: it is the archive that was meant, and it is still not trusted."""
    place[1].mkdir()
    # The bad member comes last, when all others are unpacked.
    (place[1] / "set.tar").write_bytes(content := tar(bad, files=FILES))
    assert refusal(place, "nowhere", content=content) == f"{place[1] / 'set.tar'}: {reason}; nothing was unpacked"
    assert not list(tmp_path.rglob("*outside"))
    assert not Path("/tmp/ibsgl-outside").exists()


def test_a_sparse_bomb_is_refused(place):
    """A kilobyte that says it is a terabyte of zeros, in GNU's sparse format 1.0."""
    info = tarfile.TarInfo("VOCdevkit/VOC2007/JPEGImages/bomb.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        info.size = 512
        archive.addfile(info, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(content.getvalue())
    said = refusal(place, "nowhere", content=content.getvalue())
    assert said.endswith("bomb.jpg' has more bytes than the archive; nothing was unpacked")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a tar at all" * 100, "it cannot be read as an uncompressed tar"),
        (WHOLE[:200_000], "000001.jpg' has more bytes than the archive"),
        (gzip.compress(WHOLE), "it cannot be read as an uncompressed tar"),
        (tar(("readme.txt", b"x")), "0 folders in VOC layout instead of one"),
        (tar(("a/ImageSets/x", b""), ("b/ImageSets/x", b"")), "2 folders in VOC layout instead of one"),
    ],
)
def test_an_archive_of_something_else_is_one_line(place, content, reason):
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(content)
    assert reason in refusal(place, "nowhere", content=content)


def test_a_full_disk_is_one_line(place, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(WHOLE)
    assert refusal(place, "nowhere") == f"{place[0]}: No space left on device; nothing was unpacked"


def test_what_a_killed_process_left_is_cleared(place):
    left = place[0].with_name(f".{place[0].name}.unpacking")
    (left / "other" / "ImageSets").mkdir(parents=True)
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(WHOLE)
    assert get(place, "nowhere")
    assert tree(place[0]) == UNPACKED
    assert not left.exists()


def test_unpacked_twice_it_is_the_same_to_the_workflow(place, tmp_path):
    place[1].mkdir()
    (place[1] / "set.tar").write_bytes(WHOLE)
    assert get(place, "nowhere")
    assert get((tmp_path / "again", place[1]), "nowhere")
    assert folder_digest(place[0]) == folder_digest(tmp_path / "again")


def _fetch_and_tell(results, barrier, place, address):
    barrier.wait()
    results.put(get(place, address))


def test_two_at_once_download_once(place, serve):
    server, address = serve(WHOLE)
    context = get_context("fork")
    results, barrier = context.Queue(), context.Barrier(2)
    both = [context.Process(target=_fetch_and_tell, args=(results, barrier, place, address)) for _ in range(2)]
    for process in both:
        process.start()
    said = sorted(results.get(timeout=30) for _ in both)
    for process in both:
        process.join()
    assert said == [False, True]
    assert server.asked == [0]
    assert tree(place[0]) == UNPACKED


def test_the_command_writes_what_it_found(place, tmp_path, monkeypatch):
    settings = json.dumps({"archives": [described(WHOLE).model_dump()]})
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "set.tar").write_bytes(WHOLE)
    arguments = ["fetch", "--root", place[0], "--mirror", tmp_path / "gone", "--mirror", tmp_path / "mirror"]
    arguments += ["--folder", place[1], "--settings", settings, "--out", stamp := tmp_path / "data.json"]
    monkeypatch.setattr(sys, "argv", ["ibsgl", *map(str, arguments)])
    for archives in ([described(WHOLE).model_dump()], "taken as it is"):
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        assert json.loads(stamp.read_text()) == {
            "root": place[0].as_posix(),
            "archives": archives,
            "files": folder_digest(place[0]),
        }


def test_the_command_fails_with_one_line_and_no_stamp(place, tmp_path, monkeypatch):
    settings = json.dumps({"archives": [described(WHOLE).model_dump()]})
    arguments = [
        "fetch",
        "--root",
        place[0],
        "--mirror",
        tmp_path / "gone",
        "--folder",
        place[1],
        "--settings",
        settings,
    ]
    monkeypatch.setattr(sys, "argv", ["ibsgl", *map(str, arguments), "--out", str(tmp_path / "data.json")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code.startswith(
        f"ibsgl: error: set.tar: no mirror has it ({tmp_path / 'gone'}: there is no such file);"
    )
    assert not list(tmp_path.glob("*.json"))

"""Only the right bytes ever stand under an archive's name, whatever servers, mirrors and the cache do."""

import errno
import gzip
import hashlib
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from conftest import MadeArchives, names
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from imports import ROOT, SOURCE

from imageclf import datasets, fetch, files
from imageclf.datasets import DATASETS, Archive, Source
from imageclf.errors import UserError

FILE = "made.bin"
CONTENT = np.random.default_rng(0).bytes(200_000)  # more than a few blocks of the network
WRONG = bytes(len(CONTENT))
ENDLESS = 64 * 2**20


def archive_of(content: bytes) -> Archive:
    """The table's entry for a file with that content."""
    return Archive(hashlib.sha256(content).hexdigest(), len(content))


def source(*addresses: str) -> Source:
    """A data set of one file with CONTENT."""
    return Source(
        {FILE: archive_of(CONTENT)}, addresses, image_shape=(1, 1, 1), classes=("a", "b"), splits=lambda _: {}
    )


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /good/<file> and whatever `published` says; elsewhere each in its own wrong way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        self.published: dict[str, bytes] = {f"/good/{FILE}": CONTENT}
        self.elsewhere = ""
        """Where /redirect/<file> leads."""
        self.requested: list[str] = []
        self.stalling, self.released, self.cut_off = threading.Event(), threading.Event(), threading.Event()

    def at(self, path: str) -> str:
        """The address of a path on this server."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/{path}"


# What is sent whole, and the length that is claimed for it.
ANSWERS = {
    "wrong": (WRONG, len(WRONG)),
    "html": (b"<html>Please log in to this network.</html>", 43),
    "short": (CONTENT[:100_000], 100_000),
    "long": (CONTENT + b"x", len(CONTENT) + 1),
    "truncated": (CONTENT[:100_000], len(CONTENT)),
}


CODES = {"forbidden": 403, "busy": 503}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requested.append(self.path)
        how = self.path.split("/")[1]
        if how in ANSWERS:
            content, claimed = ANSWERS[how]
            self._send(content, {"Content-Length": str(claimed)})
        elif how in CODES:
            self.send_error(CODES[how])
        elif how == "redirect":
            self._send(b"", {"Location": server.elsewhere}, status=302)
        elif how == "encoded":
            self._send(server.published[self.path], {"Content-Encoding": "gzip"})
        elif how == "endless":
            self._send_endlessly(server)
        elif how == "chunked":
            self.protocol_version = "HTTP/1.1"  # 1.0 has no chunks
            self._send(
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT),
                {"Transfer-Encoding": "chunked", "Connection": "close"},
            )
        elif how == "trickle":
            self._trickle(server)
        elif how == "stall":
            self._send(CONTENT[:100_000], {"Content-Length": str(len(CONTENT))})
            server.stalling.set()
            server.released.wait(30)
        elif self.path in server.published:
            self._send(server.published[self.path], {})
        else:
            self.send_error(404)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _trickle(self, server: Server) -> None:
        """A byte at a time, each in time."""
        try:
            self._send(b"", {"Content-Length": str(len(CONTENT))})
            while not server.released.wait(0.01):
                self.wfile.write(b"x")
        except ConnectionError:
            server.cut_off.set()

    def _send_endlessly(self, server: Server) -> None:
        try:
            self._send(b"", {})
            for _ in range(ENDLESS // 2**16):
                self.wfile.write(bytes(2**16))
        except ConnectionError:
            server.cut_off.set()


def _served(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    yield from _served(Server())


@pytest.fixture
def secure_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The same over https, trusted."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(_certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    server.scheme = "https"
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    yield from _served(server)


def _certificate() -> bytes:
    """A key and a certificate for 127.0.0.1 that it signs itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no mirror, no proxy and no pauses."""
    for variable in ("IMAGECLF_MIRROR", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "PAUSE_S", 0)
    return tmp_path / "cache"


@pytest.fixture
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way to be wrong; and for a stall, little patience."""
    if request.param == "stall":
        monkeypatch.setattr(fetch, "TIMEOUT_S", (10, 0.2))
    if request.param == "trickle":
        monkeypatch.setattr(fetch, "GRACE_S", 0.2)
    return request.param


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder to fill."""
    return tmp_path / "raw"


def fetch_made(raw: Path, *addresses: str, mirror: str | None = None) -> None:
    """Fetch the made data set from these addresses."""
    fetch.fetch("made", source(*addresses), raw, mirror, progress=False)


def refusal(raw: Path, *addresses: str, mirror: str | None = None) -> str:
    """What is said when no place has the file; nothing may be left behind."""
    with pytest.raises(UserError) as refused:
        fetch_made(raw, *addresses, mirror=mirror)
    assert names(raw) == []
    assert names(fetch.cache()) == []
    return str(refused.value)


def is_right(raw: Path, cache: Path) -> bool:
    """Whether both hold the one right file and nothing else."""
    return (
        names(raw) == [FILE]
        and (raw / FILE).read_bytes() == CONTENT
        and names(cache) == [archive_of(CONTENT).sha256]
        and (cache / archive_of(CONTENT).sha256).read_bytes() == CONTENT
    )


# --- servers ---


def test_a_good_server_is_asked_once(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), server.at("never-asked"))
    assert is_right(raw, cache)
    assert server.requested == [f"/good/{FILE}"]


BAD = ["missing", "forbidden", "busy", "wrong", "html", "short", "long", "truncated", "endless", "stall", "trickle"]


@pytest.mark.parametrize("how", BAD, indirect=True)
def test_a_bad_server_is_left_for_the_next(server: Server, raw: Path, cache: Path, how: str) -> None:
    fetch_made(raw, server.at(how), server.at("good"))
    assert is_right(raw, cache)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "404 Client Error"),
        ("forbidden", "403 Client Error"),
        ("busy", "503 Server Error"),
        ("wrong", "its SHA-256 is not the published one"),
        ("html", "43 bytes, not 200000: not the file it should be"),
        ("short", "100000 bytes, not 200000: not the file it should be"),
        ("long", "more than 200000 bytes: not the file it should be"),
        ("truncated", "the connection broke off"),
        ("endless", "more than 200000 bytes: not the file it should be"),
        ("stall", "no answer in time"),
        ("trickle", "slower than 10000 bytes a second"),
    ],
    indirect=["how"],
)
def test_a_bad_server_leaves_nothing_and_is_named(server: Server, raw: Path, how: str, reason: str) -> None:
    said = refusal(raw, server.at(how))
    assert f"  {server.at(how)}/{FILE}: {reason}" in said


@pytest.mark.parametrize(
    ("how", "times"),
    [("missing", 1), ("busy", 1), ("wrong", 1), ("truncated", 3), ("stall", 3)],
    indirect=["how"],
)
def test_only_a_broken_connection_is_tried_again(server: Server, raw: Path, how: str, times: int) -> None:
    refusal(raw, server.at(how))
    assert server.requested == [f"/{how}/{FILE}"] * times


def test_an_endless_answer_is_cut_off(server: Server, raw: Path) -> None:
    refusal(raw, server.at("endless"))
    assert server.cut_off.wait(5), f"took all of {ENDLESS} bytes"


@pytest.mark.parametrize("how", ["trickle"], indirect=True)
def test_a_server_that_sends_byte_by_byte_is_hung_up_on_and_not_asked_again(
    server: Server, raw: Path, how: str
) -> None:
    refusal(raw, server.at(how))
    assert server.cut_off.wait(5)
    assert server.requested == [f"/trickle/{FILE}"]


def test_a_body_in_chunks_is_put_together(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("chunked"))
    assert is_right(raw, cache)


def test_a_server_that_is_not_there_is_named(server: Server, raw: Path) -> None:
    gone = server.at("good")
    server.shutdown()
    server.server_close()
    assert f"  {gone}/{FILE}: cannot be reached" in refusal(raw, gone)


def test_failing_everywhere_names_each_place_and_the_way_out(server: Server, raw: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    said = refusal(raw, server.at("missing"), server.at("wrong"), mirror=str(mirror))
    assert [line.split(": ")[0] for line in said.splitlines()[1:-1]] == [
        f"  {mirror}/made/{FILE}",
        f"  {mirror}/{FILE}",
        f"  {server.at('missing')}/{FILE}",
        f"  {server.at('wrong')}/{FILE}",
    ]
    assert said.startswith(f"{FILE} could not be had:")
    assert "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR" in said.splitlines()[-1]


def test_a_redirect_is_followed(server: Server, raw: Path, cache: Path) -> None:
    server.elsewhere = f"/good/{FILE}"
    fetch_made(raw, server.at("redirect"))
    assert is_right(raw, cache)


def test_https_works(secure_server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, secure_server.at("good"))
    assert is_right(raw, cache)


def test_a_redirect_from_https_to_https_is_followed(secure_server: Server, raw: Path, cache: Path) -> None:
    secure_server.elsewhere = secure_server.at(f"good/{FILE}")
    fetch_made(raw, secure_server.at("redirect"))
    assert is_right(raw, cache)


def test_a_redirect_from_https_to_http_is_refused(secure_server: Server, server: Server, raw: Path) -> None:
    secure_server.elsewhere = server.at(f"good/{FILE}")
    assert "redirects from https to plain http, which is refused" in refusal(raw, secure_server.at("redirect"))
    assert secure_server.requested == [f"/redirect/{FILE}"]
    assert server.requested == []


def test_a_certificate_that_nobody_vouches_for_is_refused(
    secure_server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "its certificate is not trusted" in refusal(raw, secure_server.at("good"))
    assert secure_server.requested == []


def test_an_archive_whose_gzip_the_server_calls_an_encoding_stays_as_it_is(server: Server, raw: Path) -> None:
    """Apache says `Content-Encoding: x-gzip` of a .gz file; a client would then unpack it on the way."""
    archive = gzip.compress(CONTENT)
    server.published = {f"/encoded/{FILE}": archive}
    made = replace(source(server.at("encoded")), files={FILE: archive_of(archive)})
    fetch.fetch("made", made, raw, None, progress=False)
    assert (raw / FILE).read_bytes() == archive


# --- a mirror ---


def publish(folder: Path, content: bytes = CONTENT) -> Path:
    """The file, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content)
    return folder


def test_a_mirrors_folder_comes_before_the_official_addresses(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror")))
    assert is_right(raw, cache)
    assert server.requested == []


def test_a_mirrors_url_is_tried_by_data_set_then_flat_then_the_official_addresses(
    server: Server, raw: Path, cache: Path
) -> None:
    fetch_made(raw, server.at("good"), mirror=server.at("mirror/"))
    assert is_right(raw, cache)
    assert server.requested == [f"/mirror/made/{FILE}", f"/mirror/{FILE}", f"/good/{FILE}"]


@pytest.mark.parametrize("path", ["made", "."])
def test_both_layouts_of_a_mirrors_folder_are_found(raw: Path, cache: Path, path: str) -> None:
    publish(raw.parent / "mirror" / path)
    fetch_made(raw, mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_the_sha256_decides_between_the_layouts_of_a_mirror(raw: Path, cache: Path) -> None:
    """Files of different data sets have the same name."""
    publish(raw.parent / "mirror" / "made", WRONG)
    publish(raw.parent / "mirror")
    fetch_made(raw, mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_a_mirror_with_wrong_bytes_is_passed_over(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror", WRONG)))
    assert is_right(raw, cache)
    assert server.requested == [f"/good/{FILE}"]


def test_a_mirror_that_is_a_file_is_passed_over(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror") / FILE))
    assert is_right(raw, cache)


def test_a_folder_in_the_place_of_the_file_is_passed_over(server: Server, raw: Path, cache: Path) -> None:
    (raw.parent / "mirror" / FILE).mkdir(parents=True)
    fetch_made(raw, server.at("good"), mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_the_environments_mirror_wins(server: Server, raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGECLF_MIRROR", str(publish(raw.parent / "mirror")))
    fetch_made(raw, mirror=server.at("good"))
    assert is_right(raw, cache)
    assert server.requested == []


def test_a_relative_mirror_is_beside_the_repository(
    raw: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not beside the copy of it in which DVC runs queued experiments."""
    (tmp_path / "repository" / "copy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository" / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    publish(tmp_path / "mirror")
    fetch_made(raw, mirror="../mirror")
    assert is_right(raw, cache)


def test_a_mirror_in_the_home_folder_is_found(raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(raw.parent / "home"))
    publish(raw.parent / "home" / "mirror")
    fetch_made(raw, mirror="~/mirror")
    assert is_right(raw, cache)


# --- the cache ---


def test_a_second_fetch_asks_nobody_even_if_dvc_deleted_the_folder(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"))
    (raw / FILE).unlink()
    raw.rmdir()
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)
    assert len(server.requested) == 1


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], bytes([CONTENT[0] ^ 1]) + CONTENT[1:]])
def test_a_damaged_cache_entry_is_fetched_again(server: Server, raw: Path, cache: Path, damage: bytes) -> None:
    fetch_made(raw, server.at("good"))
    (cache / archive_of(CONTENT).sha256).write_bytes(damage)
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)
    assert len(server.requested) == 2


def test_the_cache_is_beside_the_repository_if_relative(
    server: Server, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    monkeypatch.setenv("IMAGECLF_CACHE", "archives")
    fetch_made(raw, server.at("good"))
    assert is_right(raw, tmp_path / "repository" / "archives")


def test_the_cache_is_the_users_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IMAGECLF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fetch.cache().is_relative_to(tmp_path)
    assert "imageclf" in fetch.cache().parts


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A place where even root cannot create a folder: below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "home"


def test_without_a_place_for_the_cache_archives_are_fetched_all_the_same(
    server: Server, raw: Path, no_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IMAGECLF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(no_folder))
    for _ in range(2):
        fetch_made(raw, server.at("wrong"), server.at("good"))
    assert (names(raw), (raw / FILE).read_bytes()) == ([FILE], CONTENT)
    assert server.requested == [f"/wrong/{FILE}", f"/good/{FILE}"] * 2
    (first, second) = capsys.readouterr().out.splitlines()
    assert (
        first
        == second
        == (
            f"cannot write to {fetch.cache()} (Not a directory): archives are not kept for the next time; "
            "set IMAGECLF_CACHE to a folder for them"
        )
    )


def no_home(_name: str) -> NoReturn:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("answer", [no_home, lambda name: Path("~/.cache", name)])
def test_without_a_home_nothing_is_written_to_a_folder_called_tilde(
    server: Server, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Path]
) -> None:
    """A user id that the system does not know, as in a container, has no home."""
    monkeypatch.delenv("IMAGECLF_CACHE")
    monkeypatch.setattr(fetch.platformdirs, "user_cache_path", answer)
    monkeypatch.chdir(tmp_path)
    fetch_made(raw, server.at("good"))
    assert names(raw) == [FILE]
    assert not (tmp_path / "~").exists()


def test_a_chosen_cache_that_cannot_be_written_is_refused_by_name(
    server: Server, raw: Path, no_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGECLF_CACHE", str(no_folder))
    with pytest.raises(UserError, match=r"^IMAGECLF_CACHE: cannot write to .*/file/home \(Not a directory\); set it"):
        fetch_made(raw, server.at("good"))
    assert server.requested == []


def test_a_cache_that_may_only_be_read_is_used(
    server: Server, raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_made(raw, server.at("good"))
    (cache / ".half.tmp").touch()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fetch.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(fetch.fcntl, "flock", refused)
    (raw / FILE).unlink()
    fetch_made(raw, server.at("good"))
    assert (raw / FILE).read_bytes() == CONTENT
    assert server.requested == [f"/good/{FILE}"]


def test_a_cache_on_a_disk_without_locks_works(
    server: Server, raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fetch.fcntl, "flock", refused)
    cache.mkdir()
    (cache / ".half.tmp").touch()
    fetch_made(raw, server.at("good"))
    assert names(raw) == [FILE]
    assert names(cache) == [".half.tmp", archive_of(CONTENT).sha256]


def test_what_else_is_in_the_folder_is_removed(server: Server, raw: Path, cache: Path) -> None:
    (raw / "folder").mkdir(parents=True)
    for stray in ("another-data-set.gz", ".made.bin.1.tmp", "folder/x"):
        (raw / stray).write_text("x")
    (raw / FILE).write_bytes(WRONG)
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)


def test_a_fetch_killed_half_way_leaves_no_file_under_a_final_name_and_its_litter_to_the_next_start(
    server: Server, raw: Path, cache: Path
) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from imageclf import fetch
from imageclf.datasets import Archive, Source
archive = Archive{tuple(archive_of(CONTENT))}
source = Source({{{FILE!r}: archive}}, ({server.at("stall")!r},), (1, 1, 1), ("a", "b"), lambda _: {{}})
fetch.fetch("made", source, Path({str(raw)!r}), None, False)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    assert server.stalling.wait(60)
    fetch._sweep(cache)  # another start takes nothing away that is being written
    (half,) = names(cache)
    process.kill()
    process.wait()
    assert (names(raw), names(cache)) == ([], [half])
    assert half.endswith(".tmp")
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)


# --- data sets ---


def test_idx_archives_go_from_a_server_to_arrays(server: Server, raw: Path, made_archives: MadeArchives) -> None:
    contents = {path.name: path.read_bytes() for path in made_archives.folder.iterdir()}
    server.published = {f"/made/{name}": content for name, content in contents.items()}
    made = Source(
        {name: archive_of(content) for name, content in contents.items()},
        (server.at("made"),),
        image_shape=(1, 5, 4),
        classes=tuple("0123456789"),
        splits=datasets._read_mnist,
    )
    fetch.fetch("made", made, raw, None, progress=False)
    assert names(raw) == sorted(DATASETS["mnist"].files)
    for split, images in made.read(raw).splits.items():
        assert np.array_equal(np.concatenate(list(images.chunks()))[:, 0], made_archives.images[split])
        assert np.array_equal(images.labels, made_archives.labels[split])


def test_digits_come_from_the_installed_package_without_importing_it(raw: Path) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from imageclf import fetch
from imageclf.datasets import DATASETS
fetch.fetch("digits", DATASETS["digits"], Path({str(raw)!r}), None, False)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert names(raw) == ["digits.csv.gz"]
    assert names(fetch.cache()) == []
    assert files.sha256(raw / "digits.csv.gz") == DATASETS["digits"].files["digits.csv.gz"].sha256
    assert "sklearn" not in done.stdout.split()


def test_a_package_that_is_not_installed_is_named(raw: Path) -> None:
    place = "package:no_such_package/data"
    assert f"  {place}/{FILE}: no such file" in refusal(raw, place)

"""Tests that only verified archives get their final names, with all kinds of wrong servers, mirrors and caches."""

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
import platformdirs
import pytest
from conftest import MadeArchives, names
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from imports import ROOT, SOURCE

from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download import datasets, fetch, http
from imageclf.download.datasets import DATASETS, Archive, Source

FILE = "made.bin"
CONTENT = np.random.default_rng(0).bytes(200_000)  # several network packets
WRONG = bytes(len(CONTENT))
ENDLESS = 64 * 2**20


def archive_of(content: bytes) -> Archive:
    """Return the size and SHA-256 of a file with this content."""
    return Archive(hashlib.sha256(content).hexdigest(), len(content))


def source(*addresses: str) -> Source:
    """Return a data set of one file with CONTENT."""
    return Source(
        {FILE: archive_of(CONTENT)}, addresses, image_shape=(1, 1, 1), classes=("a", "b"), splits=lambda _: {}
    )


class Server(ThreadingHTTPServer):
    """Serve `published`, which has CONTENT at /good/<file>; each other path has a different error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        self.published: dict[str, bytes] = {f"/good/{FILE}": CONTENT}
        self.location = ""
        """Target of /redirect/<file>."""
        self.requested: list[str] = []
        self.stalling, self.released, self.cut_off = threading.Event(), threading.Event(), threading.Event()

    def at(self, path: str) -> str:
        """Return the address of a path on this server."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/{path}"


ANSWERS = {
    "wrong": (WRONG, len(WRONG)),
    "html": (b"<html>Please log in to this network.</html>", 43),
    "short": (CONTENT[:100_000], 100_000),
    "long": (CONTENT + b"x", len(CONTENT) + 1),
    "truncated": (CONTENT[:100_000], len(CONTENT)),
}
"""Content and Content-Length of wrong answers."""


CODES = {"forbidden": 403, "busy": 503}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requested.append(self.path)
        how = self.path.split("/")[1]
        if how in ANSWERS:
            content, length = ANSWERS[how]
            self._send(content, {"Content-Length": str(length)})
        elif how in CODES:
            self.send_error(CODES[how])
        elif how == "redirect":
            self._send(b"", {"Location": server.location}, status=302)
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
        """Send single bytes, each before the timeout."""
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
    """Start a server on this machine."""
    yield from _served(Server())


@pytest.fixture
def secure_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start a server with https and a trusted certificate."""
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
    """Return a key and a self-signed certificate for 127.0.0.1, as PEM."""
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
    """Use an empty cache, no mirror, no proxy and no pauses."""
    for variable in ("IMAGECLF_MIRROR", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "PAUSE_S", 0)
    return tmp_path / "cache"


@pytest.fixture
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a kind of error; shorten the timeout for slow servers."""
    if request.param == "stall":
        monkeypatch.setattr(http, "TIMEOUT_S", (10, 0.2))
    if request.param == "trickle":
        monkeypatch.setattr(http, "GRACE_S", 0.2)
    return request.param


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return the folder for the files."""
    return tmp_path / "raw"


def fetch_made(raw: Path, *addresses: str, mirror: str | None = None) -> None:
    """Fetch the data set of one file from these addresses."""
    fetch.fetch("made", source(*addresses), raw, mirror, progress=False)


def refusal(raw: Path, *addresses: str, mirror: str | None = None) -> str:
    """Return the error if no address has the file; check that no file is left."""
    with pytest.raises(UserError) as refused:
        fetch_made(raw, *addresses, mirror=mirror)
    assert names(raw) == []
    assert names(paths.cache()) == []
    return str(refused.value)


def is_right(raw: Path, cache: Path) -> bool:
    """Return True if both folders contain the right file and nothing else."""
    return (
        names(raw) == [FILE]
        and (raw / FILE).read_bytes() == CONTENT
        and names(cache) == [archive_of(CONTENT).sha256]
        and (cache / archive_of(CONTENT).sha256).read_bytes() == CONTENT
    )


# --- servers ---


def test_a_good_server_gets_one_request(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), server.at("unused"))
    assert is_right(raw, cache)
    assert server.requested == [f"/good/{FILE}"]


BAD = ["missing", "forbidden", "busy", "wrong", "html", "short", "long", "truncated", "endless", "stall", "trickle"]


@pytest.mark.parametrize("how", BAD, indirect=True)
def test_after_a_bad_server_the_next_is_used(server: Server, raw: Path, cache: Path, how: str) -> None:
    fetch_made(raw, server.at(how), server.at("good"))
    assert is_right(raw, cache)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "404 Client Error"),
        ("forbidden", "403 Client Error"),
        ("busy", "503 Server Error"),
        ("wrong", "its SHA-256 is not the published one"),
        ("html", "43 bytes, not 200000: this is another file"),
        ("short", "100000 bytes, not 200000: this is another file"),
        ("long", "more than 200000 bytes: this is another file"),
        ("truncated", "the connection was lost"),
        ("endless", "more than 200000 bytes: this is another file"),
        ("stall", "no answer in time"),
        ("trickle", "slower than 10000 bytes per second"),
    ],
    indirect=["how"],
)
def test_a_bad_server_is_named_and_leaves_no_file(server: Server, raw: Path, how: str, reason: str) -> None:
    message = refusal(raw, server.at(how))
    assert f"  {server.at(how)}/{FILE}: {reason}" in message


@pytest.mark.parametrize(
    ("how", "times"),
    [("missing", 1), ("busy", 1), ("wrong", 1), ("truncated", 3), ("stall", 3)],
    indirect=["how"],
)
def test_only_a_broken_connection_is_tried_again(server: Server, raw: Path, how: str, times: int) -> None:
    refusal(raw, server.at(how))
    assert server.requested == [f"/{how}/{FILE}"] * times


def test_an_endless_answer_is_stopped(server: Server, raw: Path) -> None:
    refusal(raw, server.at("endless"))
    assert server.cut_off.wait(5), f"took all of {ENDLESS} bytes"


@pytest.mark.parametrize("how", ["trickle"], indirect=True)
def test_a_server_that_sends_single_bytes_is_stopped_and_not_tried_again(server: Server, raw: Path, how: str) -> None:
    refusal(raw, server.at(how))
    assert server.cut_off.wait(5)
    assert server.requested == [f"/trickle/{FILE}"]


def test_a_chunked_body_is_read(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("chunked"))
    assert is_right(raw, cache)


def test_a_server_that_does_not_exist_is_named(server: Server, raw: Path) -> None:
    address = server.at("good")
    server.shutdown()
    server.server_close()
    assert f"  {address}/{FILE}: cannot be reached" in refusal(raw, address)


def test_the_error_names_each_address_and_the_remedy(server: Server, raw: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    message = refusal(raw, server.at("missing"), server.at("wrong"), mirror=str(mirror))
    assert [line.split(": ")[0] for line in message.splitlines()[1:-1]] == [
        f"  {mirror}/made/{FILE}",
        f"  {mirror}/{FILE}",
        f"  {server.at('missing')}/{FILE}",
        f"  {server.at('wrong')}/{FILE}",
    ]
    assert message.startswith(f"{FILE} could not be downloaded:")
    assert "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR" in message.splitlines()[-1]


def test_a_redirect_is_followed(server: Server, raw: Path, cache: Path) -> None:
    server.location = f"/good/{FILE}"
    fetch_made(raw, server.at("redirect"))
    assert is_right(raw, cache)


def test_https_works(secure_server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, secure_server.at("good"))
    assert is_right(raw, cache)


def test_a_redirect_from_https_to_https_is_followed(secure_server: Server, raw: Path, cache: Path) -> None:
    secure_server.location = secure_server.at(f"good/{FILE}")
    fetch_made(raw, secure_server.at("redirect"))
    assert is_right(raw, cache)


def test_a_redirect_from_https_to_http_is_refused(secure_server: Server, server: Server, raw: Path) -> None:
    secure_server.location = server.at(f"good/{FILE}")
    assert "it redirects from https to http, which is not allowed" in refusal(raw, secure_server.at("redirect"))
    assert secure_server.requested == [f"/redirect/{FILE}"]
    assert server.requested == []


def test_an_untrusted_certificate_is_refused(secure_server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "its certificate is not trusted" in refusal(raw, secure_server.at("good"))
    assert secure_server.requested == []


def test_an_archive_is_not_unpacked_if_the_server_reports_its_gzip_as_an_encoding(server: Server, raw: Path) -> None:
    """Apache sends `Content-Encoding: x-gzip` for a .gz file; clients then unpack it."""
    archive = gzip.compress(CONTENT)
    server.published = {f"/encoded/{FILE}": archive}
    made = replace(source(server.at("encoded")), files={FILE: archive_of(archive)})
    fetch.fetch("made", made, raw, None, progress=False)
    assert (raw / FILE).read_bytes() == archive


# --- a mirror ---


def publish(folder: Path, content: bytes = CONTENT) -> Path:
    """Write the file to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content)
    return folder


def test_a_folder_as_mirror_comes_before_the_official_addresses(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror")))
    assert is_right(raw, cache)
    assert server.requested == []


def test_a_url_as_mirror_is_tried_with_and_without_the_name_of_the_data_set(
    server: Server, raw: Path, cache: Path
) -> None:
    fetch_made(raw, server.at("good"), mirror=server.at("mirror/"))
    assert is_right(raw, cache)
    assert server.requested == [f"/mirror/made/{FILE}", f"/mirror/{FILE}", f"/good/{FILE}"]


@pytest.mark.parametrize("path", ["made", "."])
def test_both_layouts_of_a_mirror_are_found(raw: Path, cache: Path, path: str) -> None:
    publish(raw.parent / "mirror" / path)
    fetch_made(raw, mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_the_sha256_decides_between_the_layouts_of_a_mirror(raw: Path, cache: Path) -> None:
    """Files of different data sets have the same name."""
    publish(raw.parent / "mirror" / "made", WRONG)
    publish(raw.parent / "mirror")
    fetch_made(raw, mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_a_mirror_with_a_wrong_file_is_skipped(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror", WRONG)))
    assert is_right(raw, cache)
    assert server.requested == [f"/good/{FILE}"]


def test_a_mirror_that_is_a_file_is_skipped(server: Server, raw: Path, cache: Path) -> None:
    fetch_made(raw, server.at("good"), mirror=str(publish(raw.parent / "mirror") / FILE))
    assert is_right(raw, cache)


def test_a_folder_with_the_name_of_the_file_is_skipped(server: Server, raw: Path, cache: Path) -> None:
    (raw.parent / "mirror" / FILE).mkdir(parents=True)
    fetch_made(raw, server.at("good"), mirror=str(raw.parent / "mirror"))
    assert is_right(raw, cache)


def test_the_mirror_of_the_environment_comes_first(
    server: Server, raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGECLF_MIRROR", str(publish(raw.parent / "mirror")))
    fetch_made(raw, mirror=server.at("good"))
    assert is_right(raw, cache)
    assert server.requested == []


def test_a_relative_mirror_is_relative_to_the_repository(
    raw: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs queued experiments in a copy, to which the path is not relative."""
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


def test_a_second_fetch_needs_no_server_after_dvc_deleted_the_folder(server: Server, raw: Path, cache: Path) -> None:
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


def test_a_relative_cache_is_relative_to_the_repository(
    server: Server, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    monkeypatch.setenv("IMAGECLF_CACHE", "archives")
    fetch_made(raw, server.at("good"))
    assert is_right(raw, tmp_path / "repository" / "archives")


def test_the_default_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IMAGECLF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache().is_relative_to(tmp_path)
    assert "imageclf" in paths.cache().parts


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """Return a path below a file, where even root cannot create a folder."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "home"


def test_without_a_writable_cache_archives_are_still_fetched(
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
            f"cannot write to {paths.cache()} (Not a directory): archives are not kept for the next run; "
            "set IMAGECLF_CACHE to a folder for them"
        )
    )


def no_home(_name: str) -> NoReturn:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("answer", [no_home, lambda name: Path("~/.cache", name)])
def test_without_a_home_folder_no_folder_named_tilde_is_created(
    server: Server, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Path]
) -> None:
    """A user id without an entry, as in a container, has no home folder."""
    monkeypatch.delenv("IMAGECLF_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", answer)
    monkeypatch.chdir(tmp_path)
    fetch_made(raw, server.at("good"))
    assert names(raw) == [FILE]
    assert not (tmp_path / "~").exists()


def test_an_imageclf_cache_that_cannot_be_written_is_refused(
    server: Server, raw: Path, no_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGECLF_CACHE", str(no_folder))
    with pytest.raises(UserError, match=r"^IMAGECLF_CACHE: cannot write to .*/file/home \(Not a directory\); set it"):
        fetch_made(raw, server.at("good"))
    assert server.requested == []


def test_a_read_only_cache_is_used(server: Server, raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_other_files_in_the_folder_are_deleted(server: Server, raw: Path, cache: Path) -> None:
    (raw / "folder").mkdir(parents=True)
    for stray in ("another-data-set.gz", ".made.bin.1.tmp", "folder/x"):
        (raw / stray).write_text("x")
    (raw / FILE).write_bytes(WRONG)
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)


def test_a_killed_fetch_leaves_a_temporary_file_that_the_next_one_deletes(
    server: Server, raw: Path, cache: Path
) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from imageclf.download import fetch
from imageclf.download.datasets import Archive, Source
archive = Archive{tuple(archive_of(CONTENT))}
source = Source({{{FILE!r}: archive}}, ({server.at("stall")!r},), (1, 1, 1), ("a", "b"), lambda _: {{}})
fetch.fetch("made", source, Path({str(raw)!r}), None, False)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    assert server.stalling.wait(60)
    fetch._delete_temporary_files(cache)  # does not delete a file that is being written
    (half,) = names(cache)
    process.kill()
    process.wait()
    assert (names(raw), names(cache)) == ([], [half])
    assert half.endswith(".tmp")
    fetch_made(raw, server.at("good"))
    assert is_right(raw, cache)


# --- data sets ---


def test_idx_archives_are_fetched_and_decoded(server: Server, raw: Path, made_archives: MadeArchives) -> None:
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


def test_digits_come_from_the_installed_package_without_importing_it_or_requests(raw: Path) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from imageclf.download import fetch
from imageclf.download.datasets import DATASETS
fetch.fetch("digits", DATASETS["digits"], Path({str(raw)!r}), None, False)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert names(raw) == ["digits.csv.gz"]
    assert names(paths.cache()) == []
    assert files.sha256(raw / "digits.csv.gz") == DATASETS["digits"].files["digits.csv.gz"].sha256
    assert not {"sklearn", "requests"} & set(done.stdout.split())


def test_a_package_that_is_not_installed_is_named(raw: Path) -> None:
    place = "package:no_such_package/data"
    assert f"  {place}/{FILE}: no such file" in refusal(raw, place)

"""Hostile and damaged archives: one clear line, exit code 2, and nothing is written but what was there before."""

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from sparsezip import cli
from sparsezip.errors import DataError
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.data import unpack as unpacks
from sparsezip.measure.data.get import get


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, **attributes: int) -> bytes:
    """A zip of these members; attributes of the first one's header are set."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for number, (name, content) in enumerate(members):
            info = zipfile.ZipInfo("x" * len(name))  # the class would mend the name
            info.filename = name
            info.compress_type = method
            info.create_system = 3
            for key, value in attributes.items() if not number else ():
                setattr(info, key, value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # two of one name are meant
                archive.writestr(info, content)
    return file.getvalue()


def tarred(*members: tuple[str, bytes], packed: bool = True, **attributes: object) -> bytes:
    """A tar.gz (or tar) of these members; attributes of the first one are set."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items() if not number else ():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return gzip.compress(file.getvalue()) if packed else file.getvalue()


def sparse() -> bytes:
    """A member that says it is a gigabyte, most of it holes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.json")
        info.size, info.pax_headers = 2, {"GNU.sparse.map": "0,2", "GNU.sparse.size": str(1 << 30)}
        archive.addfile(info, io.BytesIO(b"{}"))
    return file.getvalue()


def encrypted() -> bytes:
    """The flag of a password in both headers."""
    whole = bytearray(zipped(("a.json", b"secret"), method=zipfile.ZIP_STORED))
    whole[6] |= 1
    whole[whole.index(b"PK\1\2") + 8] |= 1
    return bytes(whole)


def lying(by: int) -> bytes:
    """A member whose headers tell another length than its bytes have."""
    whole = bytearray(zipped(("a.json", b"0123456789" * 10)))
    for start, offset in ((0, 22), (whole.index(b"PK\1\2"), 24)):
        (length,) = struct.unpack_from("<I", whole, start + offset)
        struct.pack_into("<I", whole, start + offset, length + by)
    return bytes(whole)


def overlapping() -> bytes:
    """One member that lies in another's bytes, the trick of bombs that need no nesting."""
    inner = zipped(("b.json", os.urandom(2000)), method=zipfile.ZIP_STORED)
    inner, entry = inner[: inner.index(b"PK\1\2")], inner[inner.index(b"PK\1\2") : inner.index(b"PK\5\6")]
    whole = bytearray(zipped(("a.json", inner), method=zipfile.ZIP_STORED))
    ending = whole.rindex(b"PK\5\6")
    entry = bytearray(entry)
    struct.pack_into("<I", entry, 42, whole.index(inner))
    struct.pack_into("<HHI", whole, ending + 8, 2, 2, struct.unpack_from("<I", whole, ending + 12)[0] + len(entry))
    return bytes(whole[:ending] + entry + whole[ending:])


def damaged(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]


def long_header() -> bytes:
    """A GNU long name that claims two gigabytes, in a few bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))


SOUND = zipped(("a.json", b"{}"), ("images/1.png", b"x" * 100))
SOUND_TAR = tarred(("a.json", b"{}"), ("images/1.png", b"x" * 100))
DOTTED = tarred((".", b""), ("./a.json", b"{}"), ("images/1.png", b"x" * 100), type=tarfile.DIRTYPE)
LINK = (stat.S_IFLNK | 0o777) << 16
ARCHIVES = {
    "empty file": (b"", "is not a zip, tar or tar.gz archive"),
    "a web page": (b"<html>Log in first</html>", "is not a zip, tar or tar.gz archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(500), "is not a zip, tar or tar.gz archive"),
    "zip cut in half": (SOUND[: len(SOUND) // 2], "damaged or incomplete"),
    "zip without its last byte": (SOUND[:-1], "damaged or incomplete"),
    "zip with a changed byte": (damaged(zipped(("a", b"abcdefgh"), method=0), 35), "damaged or incomplete"),
    "zip of nothing": (zipped(), "holds none of"),
    "zip: parent": (zipped(("../a.json", b"{}")), "not a path inside a folder: '../a.json'"),
    "zip: parent inside": (zipped(("images/../../a.json", b"{}")), "not a path inside a folder"),
    "zip: absolute": (zipped(("/tmp/a.json", b"{}")), "not a path inside a folder"),
    "zip: drive": (zipped(("C:/a.json", b"{}")), "not a path inside a folder"),
    "zip: backslashes": (zipped(("..\\a.json", b"{}")), "not a path inside a folder"),
    "zip: two slashes": (zipped(("a//b.json", b"{}")), "not a path inside a folder"),
    "zip: NUL in a name": (zipped(("a.json\0.png", b"{}")), "not a path inside a folder"),
    "zip: line end in a name": (zipped(("a\n.json", b"{}")), "not a path inside a folder"),
    "zip: long name": (zipped(("a" * 300, b"{}")), "not a path inside a folder"),
    "zip: deep path": (zipped(("a/" * 600 + "b", b"{}")), "not a path inside a folder"),
    "zip: link": (zipped(("a.json", b"/etc/passwd"), external_attr=LINK), "is a link or a device"),
    "zip: pipe": (zipped(("a.json", b""), external_attr=(stat.S_IFIFO | 0o600) << 16), "is a link or a device"),
    "zip: twice": (zipped(("a.json", b"1"), ("a.json", b"2")), "'a.json' twice"),
    "zip: twice but for case": (zipped(("a.json", b"1"), ("A.JSON", b"2")), "twice"),
    "zip: file as folder": (zipped(("a", b"1"), ("a/b", b"2")), "twice"),
    "zip: folder as file": (zipped(("a/b", b"1"), ("a", b"2")), "twice"),
    "zip: password": (encrypted(), ": 'a.json' is encrypted"),
    "zip: bomb": (zipped(("a.json", bytes(30 << 20))), "swells from"),
    "zip: longer than told": (lying(-50), "damaged or incomplete"),
    "zip: shorter than told": (lying(50), "damaged or incomplete|ends after"),
    "zip: overlapping": (overlapping(), "its members overlap"),
    "zip: bzip2": (zipped(("a.json", b"{}" * 99), method=zipfile.ZIP_BZIP2), "packed in a way that is not taken"),
    "zip: lzma": (zipped(("a.json", b"{}" * 99), method=zipfile.ZIP_LZMA), "packed in a way that is not taken"),
    "tar.gz cut in half": (SOUND_TAR[: len(SOUND_TAR) // 2], "damaged or incomplete"),
    "tar.gz with a changed byte": (damaged(SOUND_TAR, -6), "damaged or incomplete|cannot be read"),
    "tar without an end": (tarred(("a.json", b"{}"), packed=False)[:1024], "damaged or incomplete"),
    "tar with a damaged header": (damaged(tarred(("a", b"1"), ("b", b"2"), packed=False), 1024), "damaged"),
    "tar.gz of no tar": (gzip.compress(b"no tar at all" * 99), "damaged or incomplete"),
    "tar: parent": (tarred(("../a.json", b"{}")), "not a path inside a folder"),
    "tar: absolute": (tarred(("/tmp/a.json", b"{}")), "not a path inside a folder"),
    "tar: sparse": (sparse(), "is a link or a device"),
    "tar: link": (tarred(("a.json", b""), type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or a device"),
    "tar: hard link": (tarred(("a.json", b""), type=tarfile.LNKTYPE, linkname="../x"), "is a link or a device"),
    "tar: device": (tarred(("a.json", b""), type=tarfile.CHRTYPE, devmajor=1, devminor=5), "is a link or a device"),
    "tar: pipe": (tarred(("a.json", b""), type=tarfile.FIFOTYPE), "is a link or a device"),
    "tar: twice": (tarred(("a.json", b"1"), ("./a.json", b"2")), "'a.json' twice"),
    "tar: bomb": (tarred(("a.json", bytes(30 << 20))), "swells from"),
    "tar: endless name": (long_header(), "header of"),
}


@pytest.mark.parametrize(("content", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_hostile_archives(content, message, tmp_path, capsys, monkeypatch):
    archive, data = tmp_path / "a" / "b" / "archive", tmp_path / "c" / "data"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content)
    monkeypatch.chdir(archive.parent)
    code = cli.main(["data", "get", "docvqa", str(data), "--from", str(archive)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(f"sparsezip: {archive}") or "The archive has a header" in err
    assert err.count("\n") == 1
    assert any(part in err for part in message.split("|")), err
    assert set(tree(tmp_path)) == {"a/b/archive", "c/data/.get/lock"}


def test_two_archives_do_not_write_over_each_other(tmp_path):
    for content in (SOUND, SOUND_TAR):
        archive = tmp_path / "archive"
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"would write over .*a\.json"):
            get(benchmark("docvqa"), tmp_path / "data", [str(archive), str(archive)])
        assert set(tree(tmp_path)) == {"archive", "data/.get/lock"}


def test_archives_beyond_the_limits(tmp_path):
    for content in (SOUND, SOUND_TAR):
        archive = tmp_path / "archive"
        archive.write_bytes(content)
        for limits, message in (
            (unpacks.Limits(bytes=50), "unpacks to more than 50 bytes"),
            (unpacks.Limits(files=1), "holds more than 1 files"),
        ):
            with pytest.raises(DataError, match=message):
                unpacks.unpack(archive, tmp_path / "into", limits=limits)
            shutil.rmtree(tmp_path / "into", ignore_errors=True)


@pytest.mark.parametrize("content", [SOUND, SOUND_TAR, DOTTED])
def test_sound_archives_are_unpacked(content, tmp_path):
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    get(benchmark("docvqa"), tmp_path, [str(archive)])
    assert tree(tmp_path / "docvqa") == {"a.json": b"{}", "images/1.png": b"x" * 100}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))

"""Take files out of an archive that nobody vouches for: zip, tar or tar.gz.

Every member is judged before its bytes are written, and an archive with one bad member is refused as a whole. Nothing
of `tarfile.extract` or `zipfile.extract` is used: members are plain files, written to new files below one folder.
"""

import errno
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

from ...errors import DataError, FailureError

CHUNK = 1 << 20
RATIO = 200  # unpacked to packed; texts reach 20, deflate's limit is 1,032
SMALL = 10 << 20  # bytes below which a ratio means nothing
SLACK = 100 << 20  # bytes that stay free on the disk
Member = tuple[str, Callable[[IO[bytes]], None]]  # its path, and what writes its bytes into a file


@dataclass(frozen=True)
class Limits:
    """The most that an archive may bring."""

    bytes: int = 200 << 30
    files: int = 1_000_000


def unpack(
    archive: Path, into: Path, *, keep: tuple[str, ...] = ("*",), strip: str = "", limits: Limits | None = None
) -> int:
    """Write the members of `archive` whose paths match one of `keep` below the folder `into`; how many they are.

    strip: what the paths lose in front. Existing files are never written over.
    Raises DataError for what is no archive, is damaged, or would leave the folder, link, repeat a name or swell beyond
    `limits`; FailureError where the disk is too small. What was written until then is in `into`.
    """
    if not archive.is_file():
        raise DataError(f"There is no archive {archive}.")
    written = 0
    with _reported(archive):
        for name, copy in _members(archive, limits or Limits(), into, keep):
            target = into / name.removeprefix(strip)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                copy(file)
            written += 1
    if not written:
        raise DataError(f"{archive} holds none of {', '.join(keep)}.")
    return written


def _members(archive: Path, limits: Limits, into: Path, keep: Sequence[str]) -> Iterator[Member]:
    """The members that are kept, of an archive whose other members are sound too."""
    with archive.open("rb") as raw:
        start = raw.read(262)
        raw.seek(0)
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            yield from _zip_members(archive, limits, into, keep)
        elif start[:2] == b"\x1f\x8b":
            yield from _tar_members(archive, GzipFile(fileobj=raw), limits, keep)
        elif start[257:] == b"ustar":
            yield from _tar_members(archive, raw, limits, keep)
        else:
            raise DataError(f"{archive} is not a zip, tar or tar.gz archive.")


@contextmanager
def _reported(archive: Path) -> Iterator[None]:
    """What the libraries raise on damaged archives, in one sentence."""
    try:
        yield
    except (DataError, FailureError):
        raise
    except FileExistsError as error:
        raise DataError(f"{archive} would write over {error.filename}.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise FailureError(f"{archive} cannot be unpacked ({error}).") from None
        raise DataError(f"{archive} cannot be read ({error}).") from None
    except Exception as error:  # the libraries raise nearly anything on hostile bytes
        raise DataError(f"{archive} is damaged or incomplete ({error or type(error).__name__}).") from None


def _zip_members(archive: Path, limits: Limits, into: Path, keep: Sequence[str]) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        names = _Names(archive, limits)
        infos = opened.infolist()
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                raise DataError(f"{archive}: {info.filename!r} is encrypted.")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{archive}: {info.filename!r} is a link or a device, not a file.")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{archive}: {info.filename!r} is packed in a way that is not taken; pack it anew.")
            names.add(info.orig_filename, info.file_size, info.is_dir())
            _check_ratio(archive, info.filename, info.file_size, info.compress_size)
        if sum(info.compress_size for info in infos) > archive.stat().st_size:
            raise DataError(f"{archive}: its members overlap.")
        kept = [info for info in infos if not info.is_dir() and _matches(names.checked(info.orig_filename), keep)]
        needed = sum(info.file_size for info in kept)
        if shutil.disk_usage(into).free < needed + SLACK:
            raise FailureError(f"{archive} unpacks to {needed:,} bytes; there is less room where {into} lies.")
        for info in kept:
            yield names.checked(info.orig_filename), partial(_from_zip, opened, info)


def _from_zip(opened: zipfile.ZipFile, info: zipfile.ZipInfo, file: IO[bytes]) -> None:
    with opened.open(info) as source:  # checks the CRC at its end, and gives no more than file_size bytes
        written = _copy(source, file)
    if written != info.file_size:
        raise DataError(f"{opened.filename}: {info.filename!r} ends after {written:,} of {info.file_size:,} bytes.")


def _tar_members(archive: Path, source: Any, limits: Limits, keep: Sequence[str]) -> Iterator[Member]:
    names = _Names(archive, limits)
    packed = archive.stat().st_size
    bounded = _Bounded(source, limits)
    with tarfile.open(fileobj=bounded, mode="r:") as opened:  # type: ignore[call-overload]  # reads are all it asks for
        while info := opened.next():
            opened.members.clear()  # tarfile would remember every one
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise DataError(f"{archive}: {info.name!r} is a link or a device, not a file.")
            names.add(info.name, info.size, info.isdir())
            _check_ratio(archive, info.name, names.bytes, packed)
            if info.isreg() and _matches(names.checked(info.name), keep):
                yield names.checked(info.name), partial(_from_tar, archive, opened, info)
        bounded.seek(opened.offset)
        if bounded.read(512) != bytes(512):  # tarfile takes a damaged header for the end
            raise DataError(f"{archive} is damaged or incomplete (no end where its members end).")
        while bounded.read(CHUNK):  # the checksum of a gzip stands behind all of it
            pass


def _from_tar(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo, file: IO[bytes]) -> None:
    source = opened.extractfile(info)
    written = _copy(source, file) if source else 0
    if written != info.size:
        raise DataError(f"{archive}: {info.name!r} ends after {written:,} of {info.size:,} bytes.")


class _Bounded:
    """A source that hands out no more at once than a sound archive asks for: headers can claim any length."""

    def __init__(self, source: Any, limits: Limits) -> None:
        self.source, self.most = source, limits.bytes + limits.files * 2048

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * CHUNK:
            raise DataError(f"The archive has a header of {size:,} bytes.")
        data: bytes = self.source.read(size)
        self._check(self.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        place: int = self.source.seek(position)
        return place

    def tell(self) -> int:
        place: int = self.source.tell()
        return place

    def _check(self, position: int) -> None:
        if position > self.most:
            raise DataError(f"The archive reaches beyond {self.most:,} bytes.")


class _Names:
    """The paths of an archive, judged one by one, and what they add up to."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive, self.limits = archive, limits
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.bytes = 0

    def add(self, name: str, size: int, folder: bool) -> None:
        """Refuse a member that is not a new file or folder below the target, or one too many."""
        if folder and name.rstrip("/") == ".":
            return
        path = self.checked(name)
        key = path.casefold()  # two names of one file on many disks
        parents = {key[:end] for end, letter in enumerate(key) if letter == "/"}
        if key in self.files or self.files & parents or (key in self.folders and not folder):
            raise DataError(f"{self.archive} holds {path!r} twice.")
        self.folders |= parents
        (self.folders if folder else self.files).add(key)
        self.bytes += 0 if folder else size
        if size < 0 or self.bytes > self.limits.bytes:
            raise DataError(f"{self.archive} unpacks to more than {self.limits.bytes:,} bytes.")
        if len(self.files) > self.limits.files or len(self.folders) > self.limits.files:
            raise DataError(f"{self.archive} holds more than {self.limits.files:,} files.")

    def checked(self, name: str) -> str:
        """The path of a member, without "./". Raises DataError where it is not one below the target folder."""
        parts = name.split("/")
        parts = [part for part in parts[:-1] if part != "."] + [part for part in parts[-1:] if part]
        sound = (
            parts
            and all(part and part != ".." and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
            and len(name) <= 1024
            and not any(letter in "\\:" or ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name)
        )
        if not sound:
            raise DataError(f"{self.archive} holds a member that is not a path inside a folder: {name[:80]!r}.")
        return "/".join(parts)


def _matches(name: str, keep: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in keep)


def _check_ratio(archive: Path, name: str, unpacked: int, packed: int) -> None:
    if unpacked > SMALL and unpacked > RATIO * packed:
        raise DataError(f"{archive}: {name!r} swells from {packed:,} to {unpacked:,} bytes, as nothing sound does.")


def _copy(source: Any, file: IO[bytes]) -> int:
    written = 0
    while chunk := source.read(CHUNK):
        file.write(chunk)
        written += len(chunk)
    return written

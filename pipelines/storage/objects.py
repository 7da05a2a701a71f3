"""Every URI the product touches: open, list, and write so that a reader sees all or nothing.

A URI is a local path or anything that fsspec opens (``s3://bucket/key``, ``memory://`` in
tests). An object appears under its name only when it is whole: locally by a temporary name,
fsync and rename; in an object store by a single put. `publish(..., exclusive=True)` lets
exactly one of several writers win.
"""

import errno
import json
import os
import random
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
import pyarrow.fs

from pipelines.errors import UserError

Value = TypeVar("Value")


ATTEMPTS = 6  # with the waits below an outage of about 30 s is bridged


FIRST_WAIT_S = 1.0


# Trying again is `retrying`'s business alone: botocore, s3fs and we would multiply to hundreds.
S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
}


# Clients raise errors of their own for connections that break; OSError they are not.
CLIENT_PACKAGES = frozenset(("aiohttp", "aiobotocore", "botocore", "http", "urllib3"))


SETTINGS = ("Credentials", "Profile", "Config", "ParamValidation", "Region", "SSOToken")


"""Words in the names of a client's errors that are about what it was given."""


S3_CREDENTIALS = (
    ". They are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from AWS_PROFILE or from "
    "the machine's role; FSSPEC_S3_ANON=true reads a public bucket without any"
)


NO_BUCKET = "bucket does not exist"  # of S3's NoSuchBucket, which s3fs takes for a missing file


# Errors that say something about the request, not about the weather: never tried again.
FINAL_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EFBIG,
    errno.EROFS,
    errno.EDQUOT,
}


FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError)  # s3fs leaves errno out


def join(uri: str, *parts: str) -> str:
    """`uri/part/part` for paths and URLs alike."""
    protocol, mark, place = uri.rpartition("://")
    return "/".join([protocol + mark + place.rstrip("/"), *parts])


def absolute(uri: str) -> str:
    """A local path made absolute, so that every process means the same; URLs unchanged."""
    return uri if "://" in uri else str(local_path(uri).absolute())


def is_local(uri: str) -> bool:
    """Whether the URI is a path of this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    return Path(os.path.expanduser(uri.removeprefix("file://")))


def relocate(value: Any, old: str, new: str) -> Any:
    """A JSON value whose texts that name something inside `old` name it inside `new`."""
    if isinstance(value, dict):
        return {name: relocate(each, old, new) for name, each in value.items()}
    if isinstance(value, list):
        return [relocate(each, old, new) for each in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def is_within(uri: str, folder: str) -> bool:
    """Whether a place is a folder or lies below it, however the two are written."""
    if is_local(uri) and is_local(folder):
        inner, outer = (local_path(absolute(place)).resolve() for place in (uri, folder))
        return inner.is_relative_to(outer)
    (fs, path), (other, above) = filesystem(uri), filesystem(folder)
    return fs.protocol == other.protocol and PurePosixPath(path).is_relative_to(above)


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path inside it.

    Raises:
        UserError: nothing here speaks its protocol, or it names no bucket, or a user.
    """
    is_s3 = uri.startswith(("s3://", "s3a://"))
    protocol, _, place = uri.partition("://")
    if is_s3 and place[:1] in ("", "/"):
        raise UserError(f"'{uri}' names no bucket; it must be s3://BUCKET or s3://BUCKET/PREFIX")
    if is_s3 and "@" in place.partition("/")[0]:  # S3's own message would tell the password
        raise UserError(
            f"'{uri}' was given with credentials; the address of a bucket has none, so leave them "
            f"out{S3_CREDENTIALS}"
        )
    try:
        fs, path = _opened(absolute(uri), S3_OPTIONS if is_s3 else {})
    except (ValueError, ImportError) as error:
        raise UserError(f"'{protocol}://' is no storage that can be used here: {error}") from None
    if is_s3:
        fs.retries = 1
    return fs, path


def _opened(uri: str, options: dict[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """What fsspec makes of a URI; a name may hold the `::` between its chained filesystems."""
    first, *others = uri.split("::")
    is_chain = any("://" in part for part in others) or first in fsspec.available_protocols()
    if not others or is_chain:
        found: tuple[fsspec.AbstractFileSystem, str] = fsspec.core.url_to_fs(uri, **options)
        return found
    protocol = uri.partition("://")[0] if "://" in uri else "file"
    kind = fsspec.get_filesystem_class(protocol)
    fs = fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri), **options)
    return fs, kind._strip_protocol(uri)


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same as a pyarrow filesystem, for Ray Train."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def retrying(action: Callable[[], Value], what: str) -> Value:
    """Run `action`; repeat it after passing storage faults, with waits that double.

    Raises:
        UserError: the storage's client lacks something, such as credentials, or there is no bucket.
        the last fault after `ATTEMPTS` tries, at once when trying again cannot help.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and NO_BUCKET in str(error):
                found = re.search(r"(?<=://)[^/\s]+", what)
                name = f"'{found[0]}'" if found else "of that name"
                raise UserError(
                    f"{what}: there is no bucket {name}; create it or correct the name"
                ) from None
            if not may_pass(error):
                if isinstance(error, PermissionError) and error.filename is None:
                    raise PermissionError(
                        f"{what}: {error}: the credentials that are used do not allow it; give "
                        f"them the right, or use others{S3_CREDENTIALS}"
                    ) from error
                if _package(error) in CLIENT_PACKAGES:
                    hint = S3_CREDENTIALS if "Credentials" in type(error).__name__ else ""
                    raise UserError(f"{what}: {error}{hint}") from error
                raise
            if attempt == ATTEMPTS:
                raise OSError(f"{what}: still failing after {ATTEMPTS} tries: {error}") from error
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
    raise AssertionError("unreachable")


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, OSError):
        return error.errno not in FINAL_ERRNOS and not isinstance(error, FINAL_ERRORS)
    status = getattr(error, "status", None)  # of a web server
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 429)  # it was too slow, or asks for patience
    about_settings = any(word in type(error).__name__ for word in SETTINGS)
    return _package(error) in CLIENT_PACKAGES and not about_settings


def _package(error: Exception) -> str:
    return type(error).__module__.split(".")[0]


def exists(uri: str) -> bool:
    """Whether an object or folder is there now (listings are never cached)."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    look = partial(_served, fs, path) if "http" in fs.protocol else partial(fs.exists, path)
    return retrying(lambda: bool(look()), f"looking for {uri}")


def _served(fs: fsspec.AbstractFileSystem, url: str) -> bool:
    """Whether a web server has it; for fsspec one that does not answer has nothing."""
    try:
        fs.info(url)
    except FileNotFoundError as error:
        cause = error.__cause__ or error
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410):
            return False
        raise cause from None
    return True


def is_folder(uri: str) -> bool:
    """Whether the URI is a folder (or a prefix with objects under it)."""
    if is_local(uri):
        return local_path(absolute(uri)).is_dir()
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    with suppress(FileNotFoundError):
        # fs.isdir of s3fs would list, and hold, everything that lies directly in it.
        return retrying(lambda: bool(fs.info(path)["type"] == "directory"), f"looking for {uri}")
    return False


def read_bytes(uri: str) -> bytes:
    """The whole object.

    Raises:
        OSError: the storage failed for longer than we try, or there is no file (ENXIO: a device or
            a pipe, which may have no end).
    """
    if is_local(uri):
        file = local_path(uri)
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ENXIO, "a device or a pipe, not a file", str(file))
        return retrying(file.read_bytes, f"reading {uri}")
    fs, path = filesystem(uri)
    return retrying(lambda: bytes(fs.cat_file(path)), f"reading {uri}")


def size(uri: str) -> int:
    """Bytes of an object."""
    if is_local(uri):
        return local_path(uri).stat().st_size
    fs, path = filesystem(uri)
    found = retrying(lambda: fs.info(path)["size"], f"looking at {uri}")
    if found is None:
        raise UserError(f"{uri}: the server does not tell its size, so it cannot be read in parts")
    return int(found)


def modified(uri: str) -> datetime:
    """When an object was written last, with its time zone."""
    if is_local(uri):
        return datetime.fromtimestamp(local_path(absolute(uri)).stat().st_mtime, UTC)
    fs, path = filesystem(uri)
    found: datetime = retrying(lambda: fs.modified(path), f"looking at {uri}")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class NotJsonError(UserError):
    """An object that was cut or altered: what we write is whole or not there."""


def read_json(uri: str) -> Any:
    """The whole object, parsed.

    Raises:
        NotJsonError: it cannot be.
    """
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NotJsonError(
            f"{uri} is no JSON: it was cut or altered ({error}); put back what it was, or delete "
            "it and give the command that wrote it again"
        ) from error


def remove(uri: str) -> None:
    """Delete an object or a folder; nothing happens when it is not there."""
    fs, path = filesystem(uri)
    with suppress(FileNotFoundError):
        if is_local(uri) or not set(path) & set("*?["):
            retrying(lambda: fs.rm(path, recursive=True), f"removing {uri}")
            return
        for file in retrying(lambda: fs.find(path), f"listing {uri}"):
            # `rm` would take the name for a pattern, and remove what else fits it.
            retrying(lambda file=file: fs.rm_file(file), f"removing {file}")  # type: ignore[misc]


def remove_if_empty(uri: str) -> None:
    """Delete a folder that holds nothing; object stores have none."""
    if is_local(uri):
        with suppress(OSError):  # it holds something, or is not there
            local_path(uri).rmdir()


def publish(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Make `data` the whole content of `uri`, in one step.

    Raises:
        FileExistsError: `exclusive`, and somebody else published first.
    """
    if is_local(uri):
        with staged_file(uri, exclusive=exclusive) as staged:
            staged.write_bytes(data)
        return
    fs, path = filesystem(uri)
    mode = "create" if exclusive else "overwrite"
    retrying(lambda: fs.pipe_file(path, data, mode=mode), f"writing {uri}")


def publish_json(uri: str, value: object, *, exclusive: bool = False) -> None:
    """`publish` of canonical, readable JSON."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    publish(uri, text.encode(), exclusive=exclusive)


@contextmanager
def staged_file(uri: str, *, exclusive: bool = False) -> Iterator[Path]:
    """A local path to write to; it becomes `uri` when the block ends without an error.

    Raises:
        FileExistsError: `exclusive`, and somebody else published first.
    """
    if is_local(uri):
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    else:
        staged = Path(tempfile.mkdtemp(prefix="staged-")) / "object"
    try:
        yield staged
        if is_local(uri):
            _rename(staged, local_path(uri), exclusive)
        else:
            fs, path = filesystem(uri)
            mode = "create" if exclusive else "overwrite"
            retrying(lambda: fs.put_file(str(staged), path, mode=mode), f"writing {uri}")
    finally:
        staged.unlink(missing_ok=True)
        if not is_local(uri):
            shutil.rmtree(staged.parent, ignore_errors=True)


def _rename(staged: Path, target: Path, exclusive: bool) -> None:
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    if exclusive:
        os.link(staged, target)  # fails if the name is taken, unlike rename
    else:
        os.replace(staged, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_folder(uri: str, name: str) -> None:
    """Refuse a folder that is not there."""
    if not is_folder(uri):
        raise UserError(f"{name} is '{uri}'; there is no such folder")

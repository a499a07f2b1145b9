"""Files and folders that are seen whole or not at all, and folders that one process has for itself."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
_held = {}  # open files: the locks end with the process


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, whose place it takes at the end of the block; where that fails it is gone, and
    what was there before stays."""
    folder = folder.resolve()  # where it is a link, that stays one
    temporary, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("writing", "replaced"))
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
        os.rename(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a file, also where there is one."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, "utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def hold(folder: Path) -> None:
    """Keeps a folder for this process until it ends, in whatever way. Raises `BlockingIOError`, with the name of the
    process that has it. A file system without locks keeps nothing."""
    path = folder.resolve() / LOCK
    if path in _held:
        return
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise BlockingIOError(file.read().strip() or "another process") from None
    except OSError:
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file


def sync(path: Path) -> None:
    """Puts a file's or folder's contents on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

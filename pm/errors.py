"""What a user is told. Everything a user can cause is a `UserError`: one line, exit code 2, no traceback."""

import errno
import sys
from collections.abc import Callable

from safetensors import SafetensorError

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class UserError(Exception):
    """Names the file or flag, the rule and the value; `main` prints it on one line: the first rank, or with
    `of_this_rank` the one that has it, where the others do not."""

    def __init__(self, message: str, of_this_rank: bool = False):
        super().__init__(message)
        self.of_this_rank = of_this_rank


def run_main(main: Callable[[list[str]], None], speaks: Callable[[], bool] = lambda: True,
             leave: Callable[[bool], None] = lambda alone: None) -> None:
    """Runs `main(argv)`; a `UserError`, a full disk or a folder that may not be written ends the process with one
    line (where it `speaks`) and exit code 2, after it called `leave` with whether it is the only rank to end so; Ctrl-C
    ends it with exit code 130."""
    try:
        main(sys.argv[1:])
    except (UserError, OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in CANNOT_WRITE:
            raise
        alone = getattr(error, "of_this_rank", False)
        if speaks() or alone:
            print(f"error: {_told(error)}", file=sys.stderr, flush=True)
        leave(alone)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    if isinstance(error, SafetensorError):  # how a full disk or a damaged file shows where tensors are written or read
        return f"a safetensors file cannot be written or read: {error}"
    return str(error)


def first_line(error: Exception) -> str:
    """What a library says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""What a user is told. Everything a user can cause is a `UserError`: one line, exit code 2, no traceback."""

import errno
import sys
from collections.abc import Callable

from safetensors import SafetensorError


class UserError(Exception):
    """Names the file or flag, the rule and the value; `main` prints it on one line."""


def run_main(main: Callable[[list[str]], None], is_main_rank: Callable[[], bool] = lambda: True) -> None:
    """Runs `main(argv)`; a `UserError`, a full disk or a folder that may not be written ends the process with one
    line and exit code 2, Ctrl-C with exit code 130."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        if is_main_rank():
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        if is_main_rank():
            print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    except SafetensorError as error:  # how a full disk or a damaged file shows where tensors are written or read
        if is_main_rank():
            print(f"error: a safetensors file cannot be written or read: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def first_line(error: Exception) -> str:
    """What a library says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""What the commands share: a mistake of the user ends in one sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable


def guarded(command: Callable[[], int]) -> int:
    """Run a command; a wrong input or a file that cannot be used is said in one sentence, with exit status 2."""
    try:
        return command()
    except (ValueError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def sentence(error: Exception) -> str:
    """The message on one line, without the call stack that gin appends to it."""
    return re.sub(r"\s*In call to configurable .*", "", " ".join(str(error).split()))

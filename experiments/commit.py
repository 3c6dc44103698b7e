"""The commit of the code in this checkout, for rows that tell what made them."""

import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).parents[1]


def now() -> str:
    """Returns the commit, marked where the code differs from it; "" without git."""

    def git(*arguments: str) -> str:
        # Without the lock that another git at work in the checkout would stumble over.
        command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        name = git("rev-parse", "--short=12", "HEAD").strip()
        changes = git("status", "--porcelain", "--", "rankax", "experiments/*.py")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + ("-changed" if changes else "")

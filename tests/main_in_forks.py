"""Runs commands of rankax.main, each in a fork of one process with the imports done.

Reads lists of arguments as JSON and prints [exit status, output] of each.
"""

import json
import os
import sys
import tempfile
import traceback

from rankax import main as program


def in_a_fork(arguments: list[str]) -> list:
    """Returns the exit status, and what came to standard output and error."""
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if not process:
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            status = 0
            try:
                sys.argv[1:] = arguments
                program.run()
            except SystemExit as end:  # as the interpreter would take it
                status = end.code if isinstance(end.code, int) else bool(end.code)
                if status and not isinstance(end.code, int):
                    print(end.code)
            except BaseException:
                status = 1
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(status or 0))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        return [status, output.read().decode()]


if __name__ == "__main__":
    print(json.dumps([in_a_fork(arguments) for arguments in json.load(sys.stdin)]))

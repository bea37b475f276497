"""Becomes a command that ends with the process that started it.

    python -m fmjax.sweeps.child PARENT COMMAND ARGUMENTS …

Python code between fork and exec, which would save this, can deadlock in a process with
threads, as JAX's are in a notebook.
"""

import os
import sys

from fmjax.launch.exit_codes import UNFINISHED
from fmjax.launch.supervisor import die_with_parent

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        sys.exit(UNFINISHED)  # It ended before the kernel was told.
    os.execvp(command[0], command)

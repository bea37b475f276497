"""Runs an fmjax verb in several processes of this machine, as a cluster would.

python launch/local.py --processes 2 -- train quickstart.gin --run_dir runs/two
"""

import sys

from fmjax.launch.supervisor import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m fmjax`."""

import sys

from fmjax.cli import main

sys.exit(main())

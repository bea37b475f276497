"""`python -m fmjax`."""

import sys

from fmjax.cli.main import main

sys.exit(main())

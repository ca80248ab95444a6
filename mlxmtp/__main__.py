"""`python -m mlxmtp` is the program `mlxmtp`."""

import sys

from mlxmtp.cli import main

sys.exit(main())

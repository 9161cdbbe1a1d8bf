"""`python -m sparsezip` is `sparsezip`."""

import sys

from .cli import main

sys.exit(main())

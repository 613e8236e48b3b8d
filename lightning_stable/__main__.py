"""``python -m lightning_stable`` is the command ``lightning-stable``."""

import sys

from lightning_stable.cli import main

sys.exit(main())

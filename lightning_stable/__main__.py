"""``python -m lightning_stable``."""

import sys

from lightning_stable.cli import main

sys.exit(main())

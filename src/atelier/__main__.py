"""`python -m atelier`, and so `torchrun … -m atelier train RUN`."""

import sys

from atelier.cli import main

sys.exit(main())

"""`python -m limetaskctl`."""

import sys

from limetaskctl.main import main

sys.exit(main())

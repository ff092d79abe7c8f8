"""``python -m meadowlark.cli``."""
import sys

from . import main

sys.exit(main())

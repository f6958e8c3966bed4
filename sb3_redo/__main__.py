"""``python -m sb3_redo`` is ``sb3-redo``."""

import sys

from sb3_redo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

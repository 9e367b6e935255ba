"""The command ``python -m lib.prepare``."""

import sys

from lib.prepare.copying import main

if __name__ == '__main__':
    sys.exit(main())

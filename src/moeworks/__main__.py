"""`python -m moeworks`, and what torchrun starts."""

import sys

from moeworks.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m hfseg`, which accelerate launch and torchrun call too."""

import sys

from hfseg.cli import main

if __name__ == "__main__":
    sys.exit(main())

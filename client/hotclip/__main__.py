"""`python -m hotclip`: the same as the `hotclip` command."""

import sys

from hotclip._cli.main import main

if __name__ == "__main__":
    sys.exit(main())

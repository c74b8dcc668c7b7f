"""`python -m hhtld.formats`, the same program as `hhtld`."""

import sys

from hhtld.commands.main import main

if __name__ == "__main__":
    sys.exit(main())

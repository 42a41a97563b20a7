"""`python -m fivefold`: the command line."""

import os
import sys

if __name__ == "__main__":
    # Python puts the current directory first, which may be an unpacked archive from elsewhere.
    here = os.getcwd()  # noqa: PTH109 - pathlib would be looked for there
    if sys.path and sys.path[0] == here and not sys.flags.safe_path:
        del sys.path[0]

    from fivefold.cli.main import main

    main()

"""python -m dynamo <verb>: the commands of `dynamo.commands`."""

import sys

from dynamo.commands import main

if __name__ == "__main__":
    sys.exit(main())

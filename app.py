"""The page: `python app.py`, then open the address that it prints.

DYNAMO_MODEL names what to load (default "embedded", the small pair that comes with the project).
"""

import os
import sys

import dynamo
from dynamo.ui import Contenders, build_demo, launch_options

MODEL = os.environ.get("DYNAMO_MODEL", "embedded")


def main() -> None:
    try:
        pair = dynamo.load(MODEL)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    build_demo(Contenders.from_pair(pair)).launch(**launch_options())


if __name__ == "__main__":
    main()

"""`python -m jaxcls.recorded`, with the tests' network registered."""

import sys

from jaxcls.recorded import main
from tests import tiny_main  # noqa: F401 (registers the network `tiny`)

if __name__ == "__main__":
    sys.exit(main())

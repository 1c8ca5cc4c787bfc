"""`python -m jaxcls.benchmark` is `jaxcls benchmark`."""

import sys

from jaxcls.benchmark import main

sys.exit(main(sys.argv))

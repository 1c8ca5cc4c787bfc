"""`python -m jaxcls.benchmark` is `jaxcls benchmark`."""

import sys

from jaxcls.benchmark import main
from jaxcls.command import leave

leave(main(sys.argv))

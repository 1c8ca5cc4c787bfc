"""`python -m jaxcls COMMAND` is `jaxcls COMMAND`."""

import sys

from jaxcls.cli import script

sys.exit(script())

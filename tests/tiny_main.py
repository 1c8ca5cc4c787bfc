"""`python -m jaxcls.main`, with the tests' network registered: for tests that need a process of its own."""

import sys

from jaxcls.main import main
from jaxcls.models.registry import MODELS
from jaxcls.models.resnet import Spec

MODELS["tiny"] = Spec((1, 2), (8, 16), expansion=2, groups=4, squeeze_excite=True)

if __name__ == "__main__":
    sys.exit(main())

"""`python -m jaxcls.benchmark` is `jaxcls benchmark`, with large pages, too, since it measures."""

import sys

from jaxcls.benchmark import main
from jaxcls.huge_pages import use_huge_pages

use_huge_pages()
sys.exit(main(sys.argv))

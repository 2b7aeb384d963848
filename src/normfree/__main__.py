"""``python -m normfree`` is the ``normfree`` command."""

import sys

from .cli import main

sys.exit(main())

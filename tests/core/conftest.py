from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", parent=settings.get_profile("patient"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")

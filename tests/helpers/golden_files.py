"""Where the golden files are: what published code answers on small random inputs."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("LOCORE_GOLDEN", Path(__file__).parents[1] / "golden"))

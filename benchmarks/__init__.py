"""Side-by-side measurements, each run as `python -m benchmarks.<name>` from the project's root.

The library of this very checkout comes first, installed or not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

"""Measurements of speed, memory and accuracy, each run as `python -m benchmarks.<name>` from the project's root.

They import the library of this working tree, even if another version of it is installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT / "src"))

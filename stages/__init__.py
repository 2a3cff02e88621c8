"""The stages, each run as `python -m stages.<name>` from the project's root.

DVC runs queued and `--temp` experiments in a copy of the project, whereas the installed package is a
link to the workspace, edited since perhaps. So the library of this very checkout comes first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

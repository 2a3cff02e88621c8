"""The command `python -m imageclf.compare`: the same as `imageclf compare`."""

from imageclf.core import process
from imageclf.study.compare import main

if __name__ == "__main__":
    process.run(main)

"""The command `python -m imageclf.recipes`: the same as `imageclf recipes`."""

from imageclf.core import process
from imageclf.study.launch import main

if __name__ == "__main__":
    process.run(main)

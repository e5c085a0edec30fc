#!/usr/bin/env python3
"""The front door: `python submit_job.py IN.parquet -o OUT --model M`, the same as `nightmill submit`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    main(["submit", *sys.argv[1:]])

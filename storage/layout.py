"""Names of files below an output directory. Pure: no I/O. Everything but data/ may change between versions.

OUT/
  data/part-00000.parquet ...          the data and nothing else
  manifest.json                        written last; readers trust only it
  README.md                            how to read the data
  _meta/metrics/part-00000.parquet     run-dependent columns, same key
  _meta/errors/part-00000.parquet      input columns + error of rows that failed; can be submitted again
  _meta/owner.json                     which job owns OUT; stays when _inprogress is swept
  _meta/job.json  _meta/stats.json
  _meta/input_rows.parquet             which rows of the input the job has, if only those that were new
  _meta/manifest-0001.json             immutable generations of the manifest
  _inprogress/plan.e1/plan.parquet     the frozen plan, by the planner with epoch 1: one row group per shard
  _inprogress/segments/shard-00042.e3-0007.parquet
  _inprogress/shards/shard-00042.e3.parquet
  _inprogress/publish.e2/              parts of the publisher with epoch 2, until they are moved into place
  _inprogress-0002/                    the same for generation 2, whose plan holds the rows that run again
  _meta/superseded/0001/data/...       what generation 1 lists and a newer one has replaced, until it is collected
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

DATA = "data"
META = "_meta"
INPROGRESS = "_inprogress"
METRICS = f"{META}/metrics"
ERRORS = f"{META}/errors"
MANIFEST = "manifest.json"
README = "README.md"
JOB_JSON = f"{META}/job.json"
STATS_JSON = f"{META}/stats.json"
INPUT_ROWS = f"{META}/input_rows.parquet"
OWNER = f"{META}/owner.json"
SUPERSEDED = f"{META}/superseded"
PLAN = f"{INPROGRESS}/plan.e1/plan.parquet"  # if the first planner brought it to its end
SEGMENTS = f"{INPROGRESS}/segments"
SHARDS = f"{INPROGRESS}/shards"


def part(folder: str, index: int) -> str:
    """`data/part-00003.parquet`"""
    return f"{folder}/part-{index:05d}.parquet"


def manifest_generation(generation: int) -> str:
    return f"{META}/manifest-{generation:04d}.json"


def superseded(generation: int) -> str:
    """Where the files of `generation` are, under their own keys, that a newer one has replaced."""
    return f"{SUPERSEDED}/{generation:04d}"


def work(generation: int) -> str:
    """The folder of everything that only a running generation needs. Whoever sweeps an older one leaves it alone."""
    return INPROGRESS if generation == 1 else f"{INPROGRESS}-{generation:04d}"


def work_of(key: str) -> str:
    """The work folder that the plan, a segment or a shard file lies in."""
    return PurePosixPath(key).parts[0]


def planning(epoch: int) -> str:
    """The folder of the planner with this epoch, for its plan and what it spills: none shares a name with another."""
    return f"{INPROGRESS}/plan.e{epoch}"


def plan(generation: int, name: str = "plan") -> str:
    """Of a later generation."""
    return f"{work(generation)}/plan/{name}.parquet"


def segment(shard_idx: int, epoch: int, seq: int, work: str = INPROGRESS) -> str:
    return f"{work}/segments/shard-{shard_idx:05d}.e{epoch}-{seq:04d}.parquet"


def shard_file(shard_idx: int, epoch: int, work: str = INPROGRESS) -> str:
    return f"{work}/shards/shard-{shard_idx:05d}.e{epoch}.parquet"


def publish_folder(epoch: int, work: str = INPROGRESS) -> str:
    return f"{work}/publish.e{epoch}"


def is_safe_key(key: str) -> bool:
    """Does `key` name something below its root: relative, no `..`, no empty step, nothing a shell or OS reads else?"""
    path = PurePosixPath(key)
    plain = not any(character in key for character in "\\\0") and str(path) == key
    return plain and not path.is_absolute() and path.parts != () and ".." not in path.parts


def is_remote(path: str) -> bool:
    """Is it an address, `s3://bucket/key`? A Path has lost one of the two slashes."""
    return re.match(r"[a-zA-Z][\w+.-]+:/", path) is not None


def shard_of(key: str) -> int:
    """The index of the shard that a segment or shard file belongs to."""
    return int(PurePosixPath(key).name.removeprefix("shard-").split(".")[0])

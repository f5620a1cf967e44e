"""What benchmark suites cost beyond the runs themselves: ``python benchmarks/suites.py``, some ten minutes, two cores.

How long a report of 10,000 records takes (processor and wall time), and how much faster the suite ``quick`` is on two processes than on one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from invdiff import bench
from invdiff.bench import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import synthetic_records


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of a call, in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def reading(count: int, folder: Path) -> str:
    synthetic_records.many(folder, count)
    wall, processor = timed(lambda: report.write(folder, say=lambda text: None))
    return f"report of {count} records: {wall:.1f} s, {processor:.1f} s of the processor"


def speed_up(suite: str, only: dict[str, list[str]], folder: Path) -> str:
    walls = [timed(lambda n=n: bench.run(suite, folder / str(n), workers=n, only=only))[0] for n in (1, 2)]  # type: ignore[misc]
    return f"{suite}: {walls[0]:.0f} s on one process, {walls[1]:.0f} s on two, {walls[0] / walls[1]:.2f} times faster"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--method", nargs="*", default=[], help="of the suite; default: all")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(reading(args.records, Path(folder) / "records"))
        print(speed_up(args.suite, {"method": args.method}, Path(folder)))


if __name__ == "__main__":
    main()

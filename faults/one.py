"""One row in this process: `python -m faults.one ROW DIRECTORY SEED LONG`; for the runner.

The result is written to DIRECTORY/result.json. The process stands in namespaces of its own.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from pathlib import Path

from shadowmesh.netlab import NetlabError, sandbox

from .bench import Bench
from .catalogue import rows


def main(name: str, place: str, seed: str, long: str) -> None:
    sandbox.settle_in()
    directory = Path(place)
    bench = Bench(directory, long == "1", random.Random(f"{seed} {name}"))
    failure = ""
    try:
        next(row for row in rows() if row.name == name).run(bench)
    except (AssertionError, NetlabError, TimeoutError) as error:
        traceback.print_exc()  # into the row's log; the table has one line
        failure = (str(error).strip() or repr(error)).splitlines()[0]
    except Exception as error:  # noqa: BLE001 - a row that is wrong is a row that fails
        traceback.print_exc()
        failure = f"the row itself broke: {error!r}"
    result = {"figures": bench.figures, "failure": failure}
    (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

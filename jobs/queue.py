"""`bertray queue` for `ray job submit --working-dir . -- python jobs/queue.py ...`: the same arguments.

Python looks for its own module `queue` beside the script that runs first, and so finds this file: imported, it is that
module.
"""

import sys

if __name__ == "__main__":
    from bertray.cli import main

    main(["queue", *sys.argv[1:]])
else:
    import os
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("queue", os.path.join(os.path.dirname(os.__file__), "queue.py"))  # noqa: PTH118, PTH120 - pathlib may not be imported yet
    assert spec is not None
    assert spec.loader is not None
    sys.modules["queue"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["queue"])

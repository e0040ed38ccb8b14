"""The tests in simulated/ need the simulated device before torch is imported: test_simulated.py runs them."""

import sys

collect_ignore = [] if "tests.cuda.device" in sys.modules else ["simulated"]

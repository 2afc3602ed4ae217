"""Property tests with new examples for as long as a budget lasts: ``make fuzz``.

Every round runs all tests that draw examples with a seed of its own. The first failure ends it: the
shortest example found is printed, and belongs to its test from then on, as ``@example``.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
NONE_SELECTED = 5  # pytest's exit code


def round_of_tests(seed: int, seconds: float, options: list[str]) -> int:
    """The exit code of one round; 0 also for one that the budget ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "hypothesis", str(TESTS)]
    command += ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", *options]
    print(f"seed {seed}, {seconds:.0f} s left", flush=True)
    try:
        return subprocess.run(command, cwd=TESTS.parent, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="to look for failures")
    parser.add_argument("--seed", type=int, help="of one round that is to be repeated")
    arguments, options = parser.parse_known_args()
    end = time.monotonic() + arguments.seconds
    if arguments.seed is not None:
        return round_of_tests(arguments.seed, arguments.seconds, options)
    rounds = 0
    while (left := end - time.monotonic()) > 0:
        seed = random.SystemRandom().randrange(2**32)
        code = round_of_tests(seed, left, options)
        if code:
            if code != NONE_SELECTED:
                print(f"found by seed {seed}: python {Path(__file__).name} --seed {seed}")
            return code
        rounds += 1
    print(f"{rounds} rounds found nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())

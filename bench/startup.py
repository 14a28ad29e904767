"""How long commands take to start, in starts of the bare interpreter: the least of several runs each.

    python bench/startup.py [runs]
"""

import subprocess
import sys
import time

COMMANDS = (["--help"], ["--version"], ["init", "--help"], ["train", "--help"], ["runs"])


def seconds(arguments: list[str], runs: int) -> float:
    """The least wall-clock time of the interpreter with these arguments."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    bare = seconds(["-c", "pass"], runs)
    print(f"python -c pass{'':16}{bare:6.3f} s")
    for command in COMMANDS:
        took = seconds(["-m", "tunesmith.cli", *command], runs)
        print(f"{'tunesmith ' + ' '.join(command):30}{took:6.3f} s  {took / bare:5.1f} bare starts")


if __name__ == "__main__":
    main()

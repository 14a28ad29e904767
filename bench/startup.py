"""How much CPU time commands take to start, in starts of the bare interpreter: the least of several runs each. CPU
time, as other work on the machine stretches the clock's.

    python bench/startup.py [runs]
"""

import resource
import subprocess
import sys

COMMANDS = (["--help"], ["--version"], ["init", "--help"], ["train", "--help"], ["export", "--help"], ["runs"])


def seconds(arguments: list[str], runs: int) -> float:
    """The least CPU time of the interpreter with these arguments."""
    times = []
    for _ in range(runs):
        before = _children()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(_children() - before)
    return min(times)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    bare = seconds(["-c", "pass"], runs)
    print(f"python -c pass{'':16}{bare:6.3f} s")
    for command in COMMANDS:
        took = seconds(["-m", "tunesmith", *command], runs)
        print(f"{'tunesmith ' + ' '.join(command):30}{took:6.3f} s  {took / bare:5.1f} bare starts")


if __name__ == "__main__":
    main()

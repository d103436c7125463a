"""Where the command `pseudolabel` starts: Ctrl-C is quiet before anything is imported that takes a while."""

import signal
import sys


def main() -> int:
    """Run the command line and return its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of half an import; `run_program` answers it later
    from pseudolabel.cli import main as program

    return program()


if __name__ == "__main__":
    sys.exit(main())

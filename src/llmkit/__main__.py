"""`llmkit` and `python -m llmkit`, which torchrun, accelerate launch and srun can start."""

from __future__ import annotations

import sys


def run_llmkit() -> None:
    """Runs the command line; Ctrl-C while it loads ends it as later."""
    try:
        from llmkit.cli import app
    except KeyboardInterrupt:
        print(
            "error[interrupted]: stopped by Ctrl-C\nkept:  nothing was saved yet", file=sys.stderr
        )
        sys.exit(130)
    app.main()


if __name__ == "__main__":
    run_llmkit()

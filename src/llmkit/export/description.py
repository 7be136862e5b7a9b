"""The description of a finished run: its page, and the card of its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.distributed.launcher import is_main_process
from llmkit.errors import Diverged
from llmkit.export.card import write_card
from llmkit.reporting.console import Console
from llmkit.reporting.page.run_page import write_page
from llmkit.reporting.run_record import read_run
from llmkit.storage import outputs


def describe_run(
    figures: Mapping[str, Any], console: Console, *, only_missing: bool = False
) -> None:
    """Writes `report.html` and the model card of a finished run, on the main process; warns instead
    of a card with figures that are not finite. Raises WriteError.

    `only_missing` keeps a page and a card that exist: a repeated run has nothing new to say, and
    the user may have edited the card.
    """
    if not is_main_process():
        return
    run = read_run(Path(figures["run_dir"]))
    page, model = run.directory / outputs.PAGE, Path(figures["model_dir"])
    if not (only_missing and page.exists()):
        write_page([run], page)
    if only_missing and (model / "README.md").exists():
        return
    try:
        write_card(run, model)
    except Diverged as fault:
        console.warn(f"no model card was written: {fault.what}")

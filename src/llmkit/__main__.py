"""`python -m llmkit`, so that torchrun and accelerate launch can start it."""

from __future__ import annotations

from llmkit.cli.app import main

main()

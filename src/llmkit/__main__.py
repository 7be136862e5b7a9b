"""`python -m llmkit`, so that torchrun and accelerate launch can start it."""

from llmkit.cli import main

main()

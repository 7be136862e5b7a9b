"""Cleaning of text before training: the stages that a document passes, each with its reason."""

"""The exceptions that people are meant to read."""

from __future__ import annotations


class TreeringError(Exception):
    """Something the user can put right: what is wrong, where, and what to do.

    The command line prints it as one message and exits with code 2; from Python it is an ordinary exception.
    """


class Interrupted(Exception):
    """A run was stopped from outside; its checkpoint is on disk and the same call goes on from it."""

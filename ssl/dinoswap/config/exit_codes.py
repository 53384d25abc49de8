"""The exit statuses of all commands. 0: everything that was asked for is done."""

EXIT_FAILED = 1
EXIT_USAGE = 2
"""The arguments have to be changed."""
EXIT_RESUMABLE = 75
"""A signal has stopped it, or another process is at it: the same command goes on (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, where jobs that were submitted go on by themselves (128 + SIGINT)."""

"""A server that reads and never answers; with ``--deaf`` it does not even read."""

import signal
import sys

if "--deaf" in sys.argv:
    while True:
        signal.pause()
for _line in sys.stdin:
    pass

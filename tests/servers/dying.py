"""A server that says why on stderr, and dies."""

import sys

print("loading the settings", file=sys.stderr)
print("cannot start: the file credentials.json is missing", file=sys.stderr)
sys.exit(3)

"""The console: web pages for the people who operate a fleet, rendered here and refreshed in place.

A page is HTML that works without scripts; `htmx` (static/, 0BSD) refreshes what is marked as live.
"""

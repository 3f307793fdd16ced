"""The schema, one step a file: `pre` before the new code runs, `post` after."""

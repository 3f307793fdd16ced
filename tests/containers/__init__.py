"""The stack of compose/compose.yaml in real containers: `make containers`."""

"""How the parts are put together: the command line and the one-machine fleet."""

"""What the fleet knows: servers, tools, runs, calls and their audit, all in Postgres."""

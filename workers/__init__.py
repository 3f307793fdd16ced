"""What the fleet does: Celery workers, warm MCP sessions, the shared breaker, the steward."""

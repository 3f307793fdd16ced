"""The Celery app: names, queues and the settings that the design rests on.

Nothing that leaves the process derives from a module path: task names, queues and the node names
that Flower shows are spelled out here.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from kombu.entity import Exchange, Queue

from registry.settings import Settings, get_settings
from workers.events import GroupedEvents, QuietDispatcher

CALL_TASK: Final = "toolfleet.call"
SUBMIT_TASK: Final = "toolfleet.submit"
STEWARD_QUEUE: Final = "toolfleet"
RUN_STAMP: Final = "run"

# The default exchange routes by queue name alone: a binding kept in Redis would be lost with
# Redis' data, and the next message with it.
_DIRECT: Final = Exchange("", type="direct")


def fleet_queue(name: str) -> Queue:
    """Return a queue of the fleet by name."""
    return Queue(name, exchange=_DIRECT, routing_key=name, no_declare=True)


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the Celery configuration of every Toolfleet process."""
    return {
        "broker_url": settings.redis_url,
        "broker_transport": "workers.transport:FleetTransport",
        "result_backend": settings.redis_url,
        # The message is a hint (D1, D2): unacked bookkeeping would cost half of everything and
        # its visibility timeout would start calls twice.
        "broker_transport_options": {
            "ack_emulation": False,
            "priority_steps": [0],
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_expires": 3600,
        # Late acks make the prefetch window count running calls: a worker holds what it can run.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_prefetch_count_reduction": False,
        "worker_proc_alive_timeout": 30,
        "worker_disable_rate_limits": True,
        "task_default_queue": STEWARD_QUEUE,
        "task_default_exchange": "",
        "task_default_routing_key": STEWARD_QUEUE,
        "task_create_missing_queues": False,
        "imports": ("workers.tasks",),
        "enable_utc": True,
    }


def make_app(settings: Settings) -> Celery:
    """Return the fleet's Celery app."""
    app = Celery("toolfleet", set_as_current=True)
    app.conf.update(configuration(settings))
    app.conf.task_queues = [fleet_queue(STEWARD_QUEUE)]
    app.steps["consumer"].add(GroupedEvents)
    app.events.dispatcher_cls = QuietDispatcher
    return app


app = make_app(get_settings())

"""Agent Orchestra: a task queue on Celery and Redis for workers that aren't all alike."""

from orchestra.agent import Agent, AgentManager
from orchestra.app import OrchestraCelery
from orchestra.breaker_policy import Breaker
from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import (
    AgentOrchestraException,
    Backoff,
    PermanentError,
    RetryableError,
    ValidationError,
)
from orchestra.orchestra import Orchestra, TaskHandle
from orchestra.state import StateManager
from orchestra.task_router import TaskRouter
from orchestra.types import TaskState, Urgency

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentManager",
    "AgentOrchestraException",
    "Backoff",
    "Breaker",
    "CapabilitySet",
    "Orchestra",
    "OrchestraCelery",
    "PermanentError",
    "Requirement",
    "RetryableError",
    "StateManager",
    "TaskHandle",
    "TaskRouter",
    "TaskState",
    "Urgency",
    "ValidationError",
]

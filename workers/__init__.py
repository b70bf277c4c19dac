"""The reference fleet: an app, and one agent a file."""

from orchestra.app import OrchestraCelery

__all__ = ["app"]

app = OrchestraCelery(
    "workers", include=["workers.io", "workers.text", "workers.compute", "workers.general", "workers.web"]
)
app.config_from_object("celeryconfig")
app.Task.resultrepr_maxsize = 100  # what logs and Flower show of a result; ours hold whole texts

"""
What a deployment tunes.

Addresses and secrets come from the environment (`ORCHESTRA_*`), which `orchestra.config` reads; what correctness rests
on is set by `OrchestraCelery` itself.
"""

from orchestra.config import load_settings as _load_settings

_settings = _load_settings()

broker_url = _settings.broker_url.get_secret_value()
result_backend = (_settings.result_backend or _settings.broker_url).get_secret_value()
result_expires = 3600  # seconds; whoever wants a result fetches it long before

# Named after the fleet, so that two on one Redis don't mix.
task_default_queue = f"{_settings.namespace or 'workers'}:general"
worker_prefetch_multiplier = 1  # tasks of seconds: what one agent holds back, another could have begun
worker_send_task_events = True  # for Flower
task_send_sent_event = True

timezone = "UTC"

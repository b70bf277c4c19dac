"""The settings that both sides share; all others are the shipped defaults."""

import os

broker_url = result_backend = os.environ["ORCHESTRA_BROKER_URL"]
accept_content = ["json"]
task_serializer = result_serializer = "json"
task_acks_late = task_reject_on_worker_lost = True
worker_send_task_events = task_send_sent_event = bool(os.environ.get("BENCHMARK_EVENTS"))

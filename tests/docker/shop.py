"""The app that the containers of pytest-celery's suite run, mounted where an image of one's own would have it."""

import socket
import time

from orchestra.app import OrchestraCelery

app = OrchestraCelery("shop", broker_transport_options={"visibility_timeout": 2})


@app.task(requires={"nlp"})
def count_words(text: str) -> tuple[str, int]:
    """Return who counted, and how many words there are."""
    return socket.gethostname(), len(text.split())


@app.task
def total(prices: list[float]) -> tuple[str, float]:
    """Return who added up, and the sum."""
    return socket.gethostname(), sum(prices)


@app.task(requires={"nlp"}, timeout=60)
def wait_for(key: str) -> str:
    """Return who waited until there is such a key in Redis."""
    while not app.store.command("EXISTS", key):
        time.sleep(0.05)
    return socket.gethostname()

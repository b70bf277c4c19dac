"""What Agent Orchestra costs and saves, measured beside stock Celery."""

"""Tests with containers: the image, the fleet of docker-compose.yml, and pytest-celery's suite over them."""

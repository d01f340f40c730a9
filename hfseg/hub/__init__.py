"""What is published: model cards, and pushing to the hub."""

"""Ray: sessions, resources, tasks and actors, training workers. No other room imports Ray."""

"""The HTTP service: one process whose database is the workspace's files; `service.api.app.create` builds it."""

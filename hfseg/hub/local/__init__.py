"""A hub on loopback that real clients accept: `LocalHub` in this process, or `serve` in the foreground."""

from hfseg.hub.local.server import LocalHub, serve, token_for

__all__ = ["LocalHub", "serve", "token_for"]

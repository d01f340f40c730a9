"""Loaded by each Python process that has this folder on PYTHONPATH: no name outside of this machine is looked up.

The first look-up that fails the rule ends the process with status 99, as clients swallow exceptions.
"""

import ipaddress
import os
import socket
import sys
import traceback

_getaddrinfo, _connect = socket.getaddrinfo, socket.socket.connect


def _is_here(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host) -> None:
    # HfFileSystem and datasets ask `datasets-server.<endpoint host>`, which is no name, and pass over the failure.
    if isinstance(host, str) and host.startswith("datasets-server.127."):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    sys.stderr.write(f"LOOKED UP OUTSIDE: {host!r}\n")
    traceback.print_stack(file=sys.stderr)
    sys.stderr.flush()
    os._exit(99)


def _guarded_getaddrinfo(host, *args, **kwargs):
    if not _is_here(host):
        _refuse(host)
    return _getaddrinfo(host, *args, **kwargs)


def _guarded_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
        _refuse(address[0])
    return _connect(self, address)


socket.getaddrinfo = _guarded_getaddrinfo
socket.socket.connect = _guarded_connect

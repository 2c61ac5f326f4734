"""Servers of other makes on a port of loopback: what every configuration of theirs has.

Each names every directory that its server writes to: tools/peers hides those of an installed one.
"""

from __future__ import annotations

#: How a program is told where its configuration is, and to stay in the foreground.
PROGRAMS = {"knotd": ["-c"], "nsd": ["-d", "-c"], "named": ["-g", "-c"]}

KNOT = """
server:
  rundir: {directory}
  user: root:root
  listen: 127.0.0.1@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: {directory}/db
"""
NSD = """
server:
  ip-address: 127.0.0.1@{port}
  database: ""
  cookie-secret-file: {directory}/cookies
  zonesdir: {directory}
  zonelistfile: {directory}/zone.list
  xfrdfile: {directory}/xfrd.state
  xfrdir: {directory}
  pidfile: {directory}/nsd.pid
  username: root
  server-count: 1
"""

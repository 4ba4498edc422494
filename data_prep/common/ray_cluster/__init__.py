"""A Ray cluster to work in: joined or started, and left without a process behind."""

from data_prep.common.ray_cluster.connection import LOOPBACK, Connection, connect

__all__ = ["LOOPBACK", "Connection", "connect"]

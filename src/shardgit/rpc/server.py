"""The gRPC edge of one worker: all services, health and reflection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shardgit.rpc.credentials import server_credentials
from shardgit.rpc.refs import Refs
from shardgit.rpc.services import Commits, Objects, RepositoriesService, add_objects
from shardgit.rpc.shards import ShardServicer
from shardgit.rpc.transport import Transport
from shardgit.rpc.writes import Packs
from shardgit.service.conversation import Conversations
from shardgit.v1 import (
    commit_pb2,
    commit_pb2_grpc,
    object_pb2,
    pack_pb2,
    pack_pb2_grpc,
    ref_pb2,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
    transport_pb2,
    transport_pb2_grpc,
)
from shardgit.version import VERSION

if TYPE_CHECKING:
    import asyncio

    from shardgit.service.store import Store
    from shardgit.tls import TlsFiles

RECEIVE_MAX_BYTES = 4 << 20
IDLE_MAX_MS = 600_000
SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[service].full_name
    for module, service in (
        (object_pb2, "ObjectService"),
        (repository_pb2, "RepositoryService"),
        (ref_pb2, "RefService"),
        (commit_pb2, "CommitService"),
        (shard_pb2, "ShardService"),
        (pack_pb2, "PackService"),
        (transport_pb2, "TransportService"),
    )
)


async def make_server(
    store: Store,
    address: str,
    *,
    stopping: asyncio.Event | None = None,
    conversations: Conversations | None = None,
    tls: TlsFiles | None = None,
    servicer: health.aio.HealthServicer | None = None,
    connection_s: float = 0.0,
    maintains: bool = True,
) -> grpc.aio.Server:
    """Return a server bound to ``address`` (shared with the other workers), not yet started.

    Streams that have no end of their own are ended once ``stopping`` is set. ``servicer`` tells how the server is.
    A connection is ended, once its calls are, when it has lasted for ``connection_s``; 0: never.
    ``maintains`` says whether the maintenance is on.
    """
    talks = conversations or Conversations(store, version=VERSION)
    age = [("grpc.max_connection_age_ms", int(connection_s * 1_000))] if connection_s else []
    server = grpc.aio.server(
        options=[
            *age,
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
            ("grpc.max_send_message_length", RECEIVE_MAX_BYTES),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            # A connection that idles is told to go; one that does not get as far as its settings is cut.
            ("grpc.max_connection_idle_ms", IDLE_MAX_MS),
            ("grpc.server_handshake_timeout_ms", int(store.limits.handshake_max_s * 1_000)),
            ("grpc.max_concurrent_streams", store.limits.grpc_streams_max),
            ("grpc.max_allowed_incoming_connections", store.limits.grpc_connections_max),
        ],
    )
    add_objects(Objects(store), server)
    repository_pb2_grpc.add_RepositoryServiceServicer_to_server(RepositoriesService(store), server)  # type: ignore[no-untyped-call]
    ref_pb2_grpc.add_RefServiceServicer_to_server(Refs(store, stopping), server)  # type: ignore[no-untyped-call]
    commit_pb2_grpc.add_CommitServiceServicer_to_server(Commits(store), server)  # type: ignore[no-untyped-call]
    shard_pb2_grpc.add_ShardServiceServicer_to_server(  # type: ignore[no-untyped-call]
        ShardServicer(store, maintains=maintains), server
    )
    pack_pb2_grpc.add_PackServiceServicer_to_server(Packs(store), server)  # type: ignore[no-untyped-call]
    transport_pb2_grpc.add_TransportServiceServicer_to_server(Transport(talks), server)  # type: ignore[no-untyped-call]
    servicer = servicer or health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *SERVICES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(
        [*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    if tls is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, server_credentials(tls))
    return server

"""Whether a Ray cluster answers, asked before Ray itself is: its own attempts go on for minutes."""

import os
import re

import grpc

from unfreeze.errors import ClusterError
from unfreeze.sweep.machine import find_token

_TIMEOUT_S = 8.0
# Any request that a driver makes does.
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"


def check_address(address: str) -> None:
    """Ask the head's GCS at ``host:port``.

    Raises:
        ClusterError: another kind of address, nothing answers within 8 s, or the token is not the cluster's.
    """
    token = find_token()
    if not re.fullmatch(r"[^/\s]+:\d+", address):
        raise ClusterError(
            f"a cluster is joined at host:port of its head's GCS (6379), but got {address!r} in cluster.address or "
            f"RAY_ADDRESS; http:// is for `ray job submit`, and ray://, Ray Client, cannot run a sweep"
        )
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:  # as Ray's own
        try:
            channel.unary_unary(_METHOD)(b"", timeout=_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                what = "refuses the token that was found" if token else "asks for a token, and none was found"
                raise ClusterError(
                    f"the Ray cluster at {address} {what}; set RAY_AUTH_TOKEN_PATH to the file of its token (on its "
                    f"head: `ray get-auth-token`)"
                ) from error
            raise ClusterError(
                f"no Ray cluster answers at {address!r}: {error.details()}; check cluster.address or RAY_ADDRESS, or "
                f"leave both out to start Ray here"
            ) from error

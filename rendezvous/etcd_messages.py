"""etcd's gRPC messages and methods, as far as this client uses them.

Generated code would check the protobuf version it was made for, and would collide with any other etcd client in the
process. So the messages are described here and live in a descriptor pool of their own; the methods are called by path.
Source: api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto of etcd 3.4 to 3.7. Enumerations are int32 here: the same
bytes. Names of packages are not part of the bytes either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "spotrun.etcd"
_MESSAGES = """
ResponseHeader
    int64 revision = 3
KeyValue
    bytes key = 1
    int64 create_revision = 2
    int64 mod_revision = 3
    int64 version = 4
    bytes value = 5
    int64 lease = 6
Event
    int32 type = 1
    KeyValue kv = 2

RangeRequest
    bytes key = 1
    bytes range_end = 2
    int64 limit = 3
    int32 sort_order = 5
    int32 sort_target = 6
    bool keys_only = 8
    int64 max_create_revision = 13
RangeResponse
    ResponseHeader header = 1
    repeated KeyValue kvs = 2
PutRequest
    bytes key = 1
    bytes value = 2
    int64 lease = 3
PutResponse
    ResponseHeader header = 1
DeleteRangeRequest
    bytes key = 1
    bytes range_end = 2
DeleteRangeResponse
    ResponseHeader header = 1
    int64 deleted = 2
RequestOp
    RangeRequest request_range = 1 oneof request
    PutRequest request_put = 2 oneof request
    DeleteRangeRequest request_delete_range = 3 oneof request
ResponseOp
    RangeResponse response_range = 1 oneof response
    PutResponse response_put = 2 oneof response
    DeleteRangeResponse response_delete_range = 3 oneof response
Compare
    int32 result = 1
    int32 target = 2
    bytes key = 3
    int64 version = 4 oneof target_union
    int64 create_revision = 5 oneof target_union
    int64 mod_revision = 6 oneof target_union
    bytes value = 7 oneof target_union
TxnRequest
    repeated Compare compare = 1
    repeated RequestOp success = 2
    repeated RequestOp failure = 3
TxnResponse
    ResponseHeader header = 1
    bool succeeded = 2
    repeated ResponseOp responses = 3

LeaseGrantRequest
    int64 TTL = 1
LeaseGrantResponse
    ResponseHeader header = 1
    int64 ID = 2
LeaseRevokeRequest
    int64 ID = 1
LeaseRevokeResponse
    ResponseHeader header = 1
LeaseKeepAliveRequest
    int64 ID = 1
LeaseKeepAliveResponse
    ResponseHeader header = 1
    int64 ID = 2
    int64 TTL = 3

WatchCreateRequest
    bytes key = 1
    bytes range_end = 2
    int64 start_revision = 3
    int64 watch_id = 7
WatchCancelRequest
    int64 watch_id = 1
WatchRequest
    WatchCreateRequest create_request = 1 oneof request
    WatchCancelRequest cancel_request = 2 oneof request
WatchResponse
    ResponseHeader header = 1
    int64 watch_id = 2
    bool created = 3
    bool canceled = 4
    int64 compact_revision = 5
    string cancel_reason = 6
    repeated Event events = 11

AuthenticateRequest
    string name = 1
    string password = 2
AuthenticateResponse
    ResponseHeader header = 1
    string token = 2
StatusRequest
StatusResponse
    ResponseHeader header = 1
    string version = 2
    int64 dbSize = 3
    int64 leader = 4
    repeated string errors = 8
    int64 dbSizeQuota = 12
"""

# Values of the enumerations
EVENT_DELETE = 1
SORT_DESCEND, SORT_BY_CREATE = 2, 2
EQUAL, GREATER = 0, 1
TARGET_VERSION, TARGET_CREATE, TARGET_MOD, TARGET_VALUE = 0, 1, 2, 3


def _describe(text: str) -> descriptor_pb2.FileDescriptorProto:
    """The file descriptor of messages written as above: `[repeated] type name = number [oneof name]`."""
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "bool": kinds.TYPE_BOOL,
        "bytes": kinds.TYPE_BYTES,
        "int32": kinds.TYPE_INT32,
        "int64": kinds.TYPE_INT64,
        "string": kinds.TYPE_STRING,
    }
    file = descriptor_pb2.FileDescriptorProto(name="spotrun/etcd.proto", package=_PACKAGE, syntax="proto3")
    message = descriptor_pb2.DescriptorProto()
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if not line.startswith(" "):
            message = file.message_type.add(name=words[0])
            continue
        repeated = words[0] == "repeated"
        kind, name, _, number, *union = words[1:] if repeated else words
        field = message.field.add(
            name=name, number=int(number), label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        )
        if kind in scalars:
            field.type = scalars[kind]
        else:
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        if union:
            unions = [one.name for one in message.oneof_decl]
            if union[1] not in unions:
                message.oneof_decl.add(name=union[1])
                unions.append(union[1])
            field.oneof_index = unions.index(union[1])
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_describe(_MESSAGES).SerializeToString())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


CompareMessage = _message("Compare")
RequestOp = _message("RequestOp")
RangeRequest = _message("RangeRequest")
PutRequest = _message("PutRequest")
DeleteRangeRequest = _message("DeleteRangeRequest")
TxnRequest = _message("TxnRequest")
LeaseGrantRequest = _message("LeaseGrantRequest")
LeaseRevokeRequest = _message("LeaseRevokeRequest")
LeaseKeepAliveRequest = _message("LeaseKeepAliveRequest")
WatchRequest = _message("WatchRequest")
WatchCreateRequest = _message("WatchCreateRequest")
WatchCancelRequest = _message("WatchCancelRequest")
AuthenticateRequest = _message("AuthenticateRequest")
StatusRequest = _message("StatusRequest")


@dataclass(frozen=True, slots=True)
class Method:
    """One gRPC method; `does` is its name in messages for people."""

    path: str
    reply: Any
    does: str


RANGE = Method("/etcdserverpb.KV/Range", _message("RangeResponse"), "a read")
PUT = Method("/etcdserverpb.KV/Put", _message("PutResponse"), "a write")
DELETE_RANGE = Method("/etcdserverpb.KV/DeleteRange", _message("DeleteRangeResponse"), "a deletion")
TXN = Method("/etcdserverpb.KV/Txn", _message("TxnResponse"), "a transaction")
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", _message("LeaseGrantResponse"), "granting a lease")
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", _message("LeaseRevokeResponse"), "revoking a lease")
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", _message("LeaseKeepAliveResponse"), "keeping a lease alive")
WATCH = Method("/etcdserverpb.Watch/Watch", _message("WatchResponse"), "a watch")
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", _message("AuthenticateResponse"), "the login")
STATUS = Method("/etcdserverpb.Maintenance/Status", _message("StatusResponse"), "a status request")

"""Message classes of the contracts, in a descriptor pool of their own.

The default pool knows each file name once. There another version of the same contract, brought by another package of
the environment, would be an error at import.
"""

from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_pool = descriptor_pool.DescriptorPool()
_contracts = descriptor_pb2.FileDescriptorSet.FromString(files(__name__).joinpath("contracts.binpb").read_bytes())
for _file in _contracts.file:  # imported files come before those that import them
    _pool.AddSerializedFile(_file.SerializeToString())


def load_messages(path: str) -> dict[str, type[Message]]:
    """The message classes of a contract by name."""
    messages = _pool.FindFileByName(path).message_types_by_name
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in messages.items()}

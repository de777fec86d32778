"""The gRPC server process."""

from common.settings import silence_grpc_logs

# gRPC's core would write a line to standard error, in any thread, for each malformed header of any client.
silence_grpc_logs()

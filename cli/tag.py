"""`hotslot tag`: addresses, and the parts that the model finds in them."""

import itertools
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from cli.call_tags import ModelVersion, RoutingKey, build_metadata
from cli.clients import connection
from cli.endpoint import Endpoint, calls_server
from cli.output import ABSENT, DIM, out, plain, print_json, print_text, seconds, text
from cli.settings import MAX_WAIT_SECONDS, AsJson
from common.clock import SystemClock
from hotslot.address.v1 import address_pb2, address_pb2_grpc

EXAMPLE = """Example:  hotslot tag "浙江省杭州市余杭区文一西路969号"

Next:  `hotslot golden record` keeps the answers, which a new revision is then compared with."""
_STYLES = ("bold cyan", "bold green", "bold yellow", "bold magenta", "bold blue", "bold red")


@calls_server
def tag(
    addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS", help="1 to 64 addresses.", show_default=False)],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Required if several models of this task are served.",
            show_default=False,
        ),
    ] = "",
    endpoint: Endpoint,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", "-t", metavar="SECONDS", min=0.001, max=MAX_WAIT_SECONDS, help="Longest wait for the answer."
        ),
    ] = 10.0,
    model_version: ModelVersion = "",
    routing_key: RoutingKey = "",
    as_json: AsJson = False,
) -> None:
    """Cut addresses into their parts: province, city, road, number …, as the model names them."""
    request = address_pb2.PredictRequest(model=model, addresses=addresses)
    metadata = build_metadata(model_version, routing_key)
    clock = SystemClock()
    with connection(endpoint, timeout) as channel:
        started = clock.monotonic()
        stub = address_pb2_grpc.AddressTaggingServiceStub(channel)
        response = stub.Predict(request, timeout=timeout, metadata=metadata)
        took = clock.monotonic() - started
    if as_json:
        print_json(_as_row(addresses, response, took))
    else:
        _show(addresses, response, took)


def _as_row(addresses: list[str], response: address_pb2.PredictResponse, took: float) -> dict[str, object]:
    results = [
        {
            "address": address,
            "spans": [plain(span) for span in result.spans],
            "components": dict(result.components),
            "all_components": {one.kind: list(one.texts) for one in result.all_components},
        }
        for address, result in zip(addresses, response.results, strict=True)
    ]
    return {
        "results": results,
        "served_by": plain(response.served_by),
        "timing": plain(response.timing),
        "round_trip_seconds": round(took, 6),
    }


def _show(addresses: list[str], response: address_pb2.PredictResponse, took: float) -> None:
    styles: dict[str, str] = {}
    chosen = itertools.cycle(_STYLES)
    for number, (address, result) in enumerate(zip(addresses, response.results, strict=True)):
        for span in result.spans:
            if span.kind not in styles:
                styles[span.kind] = next(chosen)
        if number:
            out.print()
        out.print(Text.assemble(*_pieces(address, result, styles)), soft_wrap=True)
        for span in result.spans:
            line = (f"  {span.kind}  ", DIM), (span.text, styles[span.kind]), (f"  {span.probability:.1%}", DIM)
            out.print(text(*line), soft_wrap=True)
    served, timing = response.served_by, response.timing
    parts = [
        f"{served.model} {served.revision or ABSENT}",
        f"{served.device}, slot {served.slot}",
        f"computed in {seconds(timing.computed.ToTimedelta().total_seconds())}",
        f"{seconds(took)} in all",
    ]
    print_text((" · ".join(parts), DIM))


def _pieces(address: str, result: address_pb2.AddressResult, styles: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The address in order: what is in no part, and the parts in their colours."""
    place = 0
    for span in result.spans:
        yield address[place : span.start], DIM
        yield address[span.start : span.end], styles[span.kind]
        place = span.end
    yield address[place:], DIM

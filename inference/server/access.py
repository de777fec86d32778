"""Who may call the public port, and over which certificate; both are read again when their files change."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc

from common.errors import Unauthenticated
from common.reload import CHECK_SECONDS, Reloaded
from common.tls import Certificate, find_ending, find_invalidity
from common.tokens import HEADER, Tokens, parse_bearer
from inference.server.aside import read_aside

HEALTH_SERVICE = "grpc.health.v1.Health"
_COMMON_NAME, _ALTERNATIVE_NAME = "x509_common_name", "x509_subject_alternative_name"
OK, DEGRADED, FAILED = 0, 1, 2  # levels of health

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class AccessState:
    """The protection of the public port, for status and metrics."""

    certificate: Certificate | None
    needs_client_certificate: bool
    needs_token: bool
    tokens: int
    reloads: Mapping[str, bool]  # by what is reloaded: whether the files are in use as they are now
    level: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The part of the access that can be changed while the server serves."""

    tokens: Reloaded[Tokens] | None = None  # of the callers; None if they need none
    exposures: tuple[str, ...] = ()  # sentences about listeners without protection
    is_health_open: bool = True  # whether the health service needs no token


class Access:
    """Authenticates the calls of the public port, and makes the credentials of its listeners."""

    def __init__(
        self,
        certificate: Reloaded[Certificate] | None,
        rules: AccessRules,
        *,
        needs_client_certificate: bool = False,
    ) -> None:
        """Open to everybody without certificate and tokens.

        Args:
            certificate: of the listeners; None without TLS.
            rules: of the callers; may be replaced.
            needs_client_certificate: whether clients must show one.
        """
        self.certificate = certificate
        self.rules = rules
        self._needs_client_certificate = needs_client_certificate

    @property
    def tokens(self) -> Reloaded[Tokens] | None:
        """The tokens of the callers; None if they need none."""
        return self.rules.tokens

    @property
    def _watched(self) -> list[Reloaded[Any]]:
        return [one for one in (self.certificate, self.tokens) if one is not None]

    @property
    def make_credentials(self) -> Callable[[], grpc.ServerCredentials] | None:
        """Makes the credentials of one listening socket; None without TLS."""
        if self.certificate is None:
            return None
        certificate, needs_one = self.certificate, self._needs_client_certificate
        return lambda: make_credentials(certificate, needs_client_certificate=needs_one)

    @property
    def has_names(self) -> bool:
        """Whether certificates of clients name callers."""
        return self._needs_client_certificate

    def authenticate(self, service: str, metadata: Metadata) -> str:
        """The name of the token that a call shows; empty if it needs none.

        Raises:
            Unauthenticated: it shows none that is valid.
        """
        tokens = self.tokens
        if tokens is None or (self.rules.is_health_open and service == HEALTH_SERVICE):
            return ""
        shown = next((value for key, value in metadata if key == HEADER), None)
        if shown is None:
            raise Unauthenticated("this server needs a token: send the metadata `authorization: Bearer TOKEN`")
        token = parse_bearer(shown)
        if not token:
            raise Unauthenticated("the metadata `authorization` is not `Bearer TOKEN`", reason="TOKEN_MALFORMED")
        name = tokens.value.find(token)
        if not name:
            raise Unauthenticated("the token is unknown here, or was revoked", reason="TOKEN_UNKNOWN")
        return name

    async def check_files(self) -> None:
        """Use the files as they are now, each second; reading them does not hold the loop."""
        await asyncio.sleep(CHECK_SECONDS)
        for one in self._watched:
            await read_aside(one.check, "access-files")

    def state(self, now: datetime) -> AccessState:
        """The protection now."""
        watched, rules = self._watched, self.rules
        failures = [f"new {one.name} not in use: {one.failure}" for one in watched if one.failure]
        certificate = None if self.certificate is None else self.certificate.value
        invalid = "" if certificate is None else find_invalidity(certificate, now)
        ending = "" if certificate is None or invalid else find_ending(certificate, now)
        weak = () if certificate is None else certificate.warnings
        tokens = None if rules.tokens is None else rules.tokens.value
        return AccessState(
            certificate=certificate,
            needs_client_certificate=self._needs_client_certificate,
            needs_token=tokens is not None,
            tokens=0 if tokens is None else len(tokens.entries),
            reloads={one.name: not one.failure for one in watched},
            level=FAILED if invalid else DEGRADED if failures or ending else OK,
            warnings=(*filter(None, (invalid, ending)), *failures, *weak, *rules.exposures),
        )


def make_credentials(certificate: Reloaded[Certificate], *, needs_client_certificate: bool) -> grpc.ServerCredentials:
    """Credentials for one listening socket, whose later connections use the certificate of that moment.

    gRPC asks for each handshake whether there is another one. What it was given is remembered here, so credentials
    cannot be shared by two sockets: only one of them would learn of a change.
    """
    given = certificate.value

    def fetch() -> Any:  # noqa: ANN401  a configuration, or None for no change, which the stubs do not know
        nonlocal given
        latest = certificate.value
        if latest is given:
            return None
        given = latest
        return _to_configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _to_configuration(given), fetch, require_client_authentication=needs_client_certificate
    )


def certificate_name(properties: Mapping[str, Iterable[bytes]]) -> str:
    """The name in a client's verified certificate: the common name, else the first alternative name; else empty."""
    for key in (_COMMON_NAME, _ALTERNATIVE_NAME):
        for value in properties.get(key, ()):
            if value:
                return value.decode("utf-8", "replace")
    return ""


def _to_configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], certificate.client_ca)

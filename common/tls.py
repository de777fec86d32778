"""Certificates of this host's listeners: reads them from files, checks them, and makes TLS contexts of them.

Nothing here needs gRPC: each process passes the bytes to the library that it uses.
"""

import _ssl
import hashlib
import ipaddress
import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.clock import Clock
from common.durable import read_bounded
from common.reload import FileUnusable, Reloaded, ReloadLog

MAX_FILE_BYTES = 1 << 20
SOON = timedelta(days=14)  # before its end a certificate is reported, or in the last fifth of a shorter life
SOON_SHARE = 0.2
# Keys that every gRPC client accepts, by the DER of their algorithm in a certificate. OpenSSL accepts others too, which
# clients built on gRPC's C core (Python, C++, Ruby, PHP) do not.
_COMMON_KEYS = (
    bytes.fromhex("06092a864886f70d010101"),  # RSA
    bytes.fromhex("06082a8648ce3d030107"),  # P-256
    bytes.fromhex("06052b81040022"),  # P-384
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a listener's certificate is."""

    certificate: Path  # PEM: the listener's own, then those between it and the CA
    key: Path  # PEM, without a password
    client_ca: Path | None = None  # PEM: clients must show a certificate that one of these has signed

    def __iter__(self) -> Iterator[Path]:
        """The files that are set."""
        yield from (self.certificate, self.key)
        if self.client_ca is not None:
            yield self.client_ca


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key, which belong together."""

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    names: tuple[str, ...]  # host names and addresses for which clients accept it
    not_before: datetime
    not_after: datetime
    fingerprint: str  # SHA-256 of the certificate, hexadecimal
    warnings: tuple[str, ...] = ()  # sentences


def load_certificate(files: TlsFiles) -> Certificate:
    """Read and check the files; dates are not checked.

    Raises:
        FileUnusable: a file cannot be read, or they do not belong together.
    """
    chain, key = read_chain(files.certificate), _read(files.key, "key")
    client_ca = None if files.client_ca is None else _read(files.client_ca, "client CA")
    details = _decode(chain)
    leaf = ssl.PEM_cert_to_DER_cert(_first(chain))
    loaded = Certificate(
        chain=chain,
        key=key,
        client_ca=client_ca,
        names=read_names(chain),
        not_before=_to_time(details["notBefore"]),
        not_after=_to_time(details["notAfter"]),
        fingerprint=hashlib.sha256(leaf).hexdigest(),
        warnings=tuple(_find_weaknesses(files.key, leaf, details)),
    )
    make_server_context(loaded)
    return loaded


def read_chain(path: Path) -> bytes:
    """The content of a certificate file, as it is.

    Raises:
        FileUnusable: it cannot be read.
    """
    return _read(path, "certificate")


def read_names(chain: bytes) -> tuple[str, ...]:
    """The host names and addresses for which clients accept the first certificate of a file.

    Raises:
        FileUnusable: it has none.
    """
    return tuple(name for kind, name in _decode(chain).get("subjectAltName", ()) if kind in ("DNS", "IP Address"))


def watch_certificate(files: TlsFiles, log: ReloadLog, clock: Clock) -> Reloaded[Certificate]:
    """The certificate of a listener, loaded again when its files change; an expired one never replaces a valid one.

    Raises:
        FileUnusable: it cannot be used.
    """

    def load(current: Certificate | None) -> Certificate:
        loaded, now = load_certificate(files), clock.now()
        problem = find_invalidity(loaded, now)
        if problem and current is not None and not find_invalidity(current, now):
            raise FileUnusable(f"{problem}; the one in use is still valid")
        return loaded

    return Reloaded("certificate", tuple(files), load, log, clock, describe_certificate)


class ServerContexts:
    """The TLS contexts of a listener of Python's own: a new one for each new certificate. From any thread."""

    def __init__(self, certificate: Reloaded[Certificate]) -> None:
        self._certificate = certificate
        self._latest = (certificate.value, make_server_context(certificate.value))

    def current(self) -> ssl.SSLContext:
        """The context for the next connection; looks at the files first, at most once a second."""
        certificate = self._certificate.current()
        known, context = self._latest
        if certificate is not known:
            context = make_server_context(certificate)
            self._latest = (certificate, context)
        return context


def describe_certificate(certificate: Certificate) -> Mapping[str, object]:
    """The fields of a log line about a certificate."""
    return {
        "names": list(certificate.names),
        "not_after": certificate.not_after.isoformat(),
        "sha256": certificate.fingerprint,
    }


def find_invalidity(certificate: Certificate, now: datetime) -> str:
    """Why clients refuse the certificate now; empty if they do not."""
    if now >= certificate.not_after:
        return f"the certificate has expired on {_format(certificate.not_after)}"
    if now < certificate.not_before:
        return f"the certificate is not valid before {_format(certificate.not_before)}"
    return ""


def find_ending(certificate: Certificate, now: datetime) -> str:
    """A sentence if the certificate must be renewed soon; empty otherwise."""
    life = certificate.not_after - certificate.not_before
    if certificate.not_after - now > min(SOON, SOON_SHARE * life):
        return ""
    return f"the certificate expires on {_format(certificate.not_after)}"


def covers_name(certificate: Certificate, name: str) -> bool:
    """Whether clients that connect to a host name or address accept the certificate."""
    wanted = name.lower().rstrip(".")
    return any(_matches(_normalise(known), _normalise(wanted)) for known in certificate.names)


def make_server_context(certificate: Certificate) -> ssl.SSLContext:
    """A TLS context for a listener of Python's own.

    Raises:
        FileUnusable: certificate and key do not belong together, or one of them is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if b"ENCRYPTED" in certificate.key:
        raise FileUnusable("the key is encrypted; hotslot reads keys without a password")
    with _as_file(certificate.chain) as chain, _as_file(certificate.key) as key:
        try:
            context.load_cert_chain(chain, key)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise FileUnusable("the key does not belong to the certificate") from error
            raise FileUnusable(f"the key file has no private key in PEM ({error.reason})") from error
    if certificate.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=certificate.client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise FileUnusable("the client CA file has no certificate in PEM") from error
    return context


def _read(path: Path, what: str) -> bytes:
    try:
        return read_bounded(path, MAX_FILE_BYTES)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileUnusable(f"the {what} file cannot be read: {reason}; this process runs as user {os.geteuid()}") from (
            error
        )
    except ValueError as error:
        raise FileUnusable(f"the {what} file has more than {MAX_FILE_BYTES} bytes") from error


def _decode(chain: bytes) -> Mapping[str, Any]:
    """The fields of the first certificate, as `ssl.SSLSocket.getpeercert` returns them.

    By a private function: none of Python's public ones decodes a certificate that no peer has shown.
    """
    with _as_file(chain) as path:
        try:
            details: dict[str, Any] = _ssl._test_decode_cert(path)  # type: ignore[attr-defined]  # noqa: SLF001
        except ssl.SSLError as error:
            raise FileUnusable("the certificate file has no certificate in PEM") from error
    return details


def _first(chain: bytes) -> str:
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    body = chain.partition(begin)[2].partition(end)[0]
    if not body:
        raise FileUnusable("the certificate file does not begin with a certificate in PEM")
    return (begin + body + end).decode("ascii", "replace")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path of the content: OpenSSL reads files only, and the one on disk may change between two reads."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _find_weaknesses(key: Path, leaf: bytes, details: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what works and should not stay so.

    Raises:
        FileUnusable: everybody may replace the key.
    """
    try:
        mode = key.stat().st_mode
    except OSError as error:  # gone since it was read
        raise FileUnusable(f"the key file cannot be read: {(error.strerror or str(error)).lower()}") from error
    if mode & stat.S_IWOTH:
        raise FileUnusable(f"every user of this machine may write the key file (mode {mode & 0o777:04o}); chmod 600 it")
    if mode & stat.S_IROTH:
        allowed = "let hotslot's user or group alone read it: chmod 600 or 640"
        yield f"every user of this machine may read the key file (mode {mode & 0o777:04o}); {allowed}"
    if not details.get("subjectAltName"):
        yield "the certificate has no subject alternative name, so clients refuse it"
    if not any(kind in leaf for kind in _COMMON_KEYS):
        yield "the certificate's key is none of RSA, P-256 and P-384: clients that use gRPC's C core refuse it"


def _normalise(name: str) -> str:
    """One spelling of an address or a name; OpenSSL writes IPv6 addresses in full."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _matches(known: str, wanted: str) -> bool:
    if known.startswith("*."):
        return wanted.partition(".")[2] == known[2:]
    return known == wanted


def _to_time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _format(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")

"""A certificate authority for tests, chaos and demos, and the files of a listener that change; made by openssl."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.tls import TlsFiles

_CURVE = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")
LOCAL = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    Args:
        folder: everything lies in it; created.
        name: of the authority.
    """

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key, self.certificate = folder / "ca.key", folder / "ca.crt"
        files = ("-keyout", str(self._key), "-out", str(self.certificate))
        _openssl("req", "-x509", "-newkey", *_CURVE, "-nodes", *files, "-days", "3650", "-subj", f"/CN={name}")

    def sign(
        self,
        name: str,
        names: Sequence[str] = LOCAL,
        days: int = 365,
        key_kind: Sequence[str] = _CURVE,
        field: str = "CN",
    ) -> Pair:
        """Make a certificate.

        Args:
            name: its common name, and that of its files.
            names: its subject alternative names, as openssl writes them; none: it has no such extension.
            days: of its validity, from now.
            key_kind: of its key, as openssl takes it.
            field: of its subject that has the name; any but CN: it has no common name.
        """
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        alternative = [f"subjectAltName={','.join(names)}"] if names else []
        extensions.write_text("\n".join(["extendedKeyUsage=serverAuth,clientAuth", *alternative]) + "\n")
        files = ("-keyout", str(pair.key), "-out", str(request))
        _openssl("req", "-newkey", *key_kind, "-nodes", *files, "-subj", f"/{field}={name}")
        signer = ("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial")
        made = ("-in", str(request), "-out", str(pair.certificate), "-extfile", str(extensions), "-days", str(days))
        _openssl("x509", "-req", *signer, *made)
        return pair


class ListenerFiles:
    """The files of a listener; `use` replaces them, each atomically, as a certificate manager does."""

    def __init__(self, folder: Path, pair: Pair, client_ca: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.files = TlsFiles(folder / "tls.crt", folder / "tls.key", client_ca)
        self.use(pair)

    def use(self, pair: Pair) -> None:
        """Replace certificate and key."""
        replace_file(self.files.certificate, pair.certificate.read_bytes())
        replace_file(self.files.key, pair.key.read_bytes())

    @property
    def settings(self) -> dict[str, str]:
        """The section `[tls]`."""
        found = {"certificate_file": str(self.files.certificate), "key_file": str(self.files.key)}
        return found | ({"client_ca_file": str(self.files.client_ca)} if self.files.client_ca is not None else {})


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically."""
    other = path.with_name(f".{path.name}.new")
    other.write_bytes(content)
    other.chmod(mode)
    other.replace(path)


def _openssl(*words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise RuntimeError("openssl is not installed; it makes the certificates")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)

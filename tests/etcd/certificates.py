# SPDX-License-Identifier: GPL-2.0-only
"""A certificate authority of a test, made with openssl."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from colo_ebpf.control.arbiter.etcd_client import Tls

_CONFIG = "[req]\ndistinguished_name = dn\n[dn]\n"


class Certificates:
    """A CA, a server's and a client's certificate in one directory."""

    def __init__(self, directory: Path, like: Certificates | None = None) -> None:
        """`like`: a copy of these, to be changed."""
        self._dir = directory
        if like is not None:
            shutil.copytree(like.path(""), directory)
            return
        directory.mkdir(parents=True)
        (directory / "config").write_text(_CONFIG)
        self._make("ca", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")
        # etcd's gateway is a client of its own server, with the server's certificate.
        self._signed(
            "server", "subjectAltName=IP:127.0.0.1", "extendedKeyUsage=serverAuth,clientAuth"
        )
        self._signed("client", "extendedKeyUsage=clientAuth")

    def path(self, name: str) -> str:
        """Of one file."""
        return str(self._dir / name)

    def _signed(self, name: str, *extensions: str) -> None:
        self._make(name, *extensions, signer="ca")

    def _make(self, name: str, *extensions: str, signer: str = "") -> None:
        command = ["openssl", "req", "-x509", "-config", self.path("config"), "-days", "2"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", f"/CN={name}", "-out", self.path(f"{name}.pem")]
        command += ["-keyout", self.path(f"{name}.key")]
        if signer:
            command += ["-CA", self.path(f"{signer}.pem"), "-CAkey", self.path(f"{signer}.key")]
        for extension in extensions:
            command += ["-addext", extension]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def date(self, name: str, first_day: int, last_day: int) -> None:
        """The certificate holds between these days, counted from today, and is else as it was."""
        read = x509.load_pem_x509_certificate
        old, ca = (read(Path(self.path(f"{n}.pem")).read_bytes()) for n in (name, "ca"))
        signer = load_pem_private_key(Path(self.path("ca.key")).read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder(ca.subject, old.subject, old.public_key(), old.serial_number)
            .not_valid_before(now + datetime.timedelta(days=first_day))
            .not_valid_after(now + datetime.timedelta(days=last_day))
        )
        for one in old.extensions:
            made = made.add_extension(one.value, one.critical)
        signed = made.sign(signer, hashes.SHA256())
        Path(self.path(f"{name}.pem")).write_bytes(signed.public_bytes(Encoding.PEM))

    def encrypt(self, name: str) -> None:
        """Put a passphrase on a key."""
        command = ["openssl", "ec", "-aes128", "-passout", "pass:secret"]
        command += ["-in", self.path(name), "-out", self.path(name)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def of_server(self) -> dict[str, str]:
        """etcd's options: every client has to show a certificate."""
        return {
            "cert-file": self.path("server.pem"),
            "key-file": self.path("server.key"),
            "trusted-ca-file": self.path("ca.pem"),
            "client-cert-auth": "true",
        }

    def of_client(self) -> Tls:
        """What the arbiter is configured with."""
        return Tls(self.path("ca.pem"), self.path("client.pem"), self.path("client.key"))

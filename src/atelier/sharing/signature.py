"""A picture's mark, signed: a manifest of C2PA within a PNG (C2PA Technical Specification 2.1), by a certificate of the
user's.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import atelier
from atelier.errors import InputError
from atelier.extras import require_extra
from atelier.files import read_limited, write_atomic
from atelier.mark import DRAWN, read_mark

KEY = "ATELIER_SIGNING_KEY"  # in the environment: the file of the private key
PEM_BYTES = 1 << 20
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class Signature:
    """What signs pictures.

    Args:
        certificates: PEM of the certificate, and of those between it and the authority that signed it.

    Raises:
        InputError: if the extra `c2pa` is missing, or certificates or key cannot sign.
    """

    def __init__(self, certificates: Path) -> None:
        require_extra("c2pa")
        from c2pa import C2paError, C2paSignerInfo, Signer

        if not (key := os.environ.get(KEY)):
            raise InputError(f"--sign: name the file of the private key, PEM, in {KEY}")
        chain, private = _pem(certificates, "--sign"), _pem(Path(key), KEY)
        try:
            self.signer = Signer.from_info(C2paSignerInfo(_algorithm(private, key), chain, private, None))
        except C2paError as error:
            raise InputError(f"--sign {certificates}: {_in_a_line(error)}") from None

    def sign(self, path: Path, target: Path) -> None:
        """Write a signed copy of a PNG that bears a mark; no pixel changes.

        Raises:
            InputError: if C2PA does not take the certificates.
            AtelierError: if its mark is damaged.
        """
        from c2pa import Builder, C2paError

        mark = read_mark(path)
        created = {"action": "c2pa.created", "digitalSourceType": DRAWN, "softwareAgent": {"name": "Atelier"}}
        manifest = {
            "claim_generator_info": [{"name": "Atelier", "version": atelier.__version__}],
            "title": target.name,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                *([] if mark is None else [{"label": "urn.atelier.mark", "data": mark.model_dump(exclude_none=True)}]),
            ],
        }
        signed = io.BytesIO()
        try:
            with Builder.from_json(json.dumps(manifest)) as builder:
                builder.sign(self.signer, "image/png", io.BytesIO(path.read_bytes()), signed)
        except C2paError as error:
            raise InputError(f"--sign: {_in_a_line(error)}") from None
        write_atomic(target, signed.getvalue())


def _pem(path: Path, what: str) -> bytes:
    try:
        content = read_limited(path, PEM_BYTES)
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror})") from None
    if not content.startswith(b"-----BEGIN "):
        raise InputError(f"{what} {path}: no PEM, which begins with -----BEGIN")
    return content


def _algorithm(private: bytes, key: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(private, None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise InputError(f"{KEY} {key}: no private key in PEM without a password") from None
    if isinstance(found, ec.EllipticCurvePrivateKey) and found.curve.name in CURVES:
        return CURVES[found.curve.name]
    if isinstance(found, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(found, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise InputError(f"{KEY} {key}: C2PA signs with keys on P-256, P-384 and P-521, of Ed25519 and RSA")


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

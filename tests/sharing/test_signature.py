"""Pictures signed by C2PA, with a certificate that an authority of the test's own signed."""

from __future__ import annotations

import datetime
import io
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from atelier.cli import app
from atelier.errors import InputError
from atelier.mark import DRAWN, read_mark
from atelier.models import ImageShape
from atelier.sharing.signature import KEY
from untrained import write_untrained

c2pa = pytest.importorskip("c2pa")


def name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Us"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now, is_authority = datetime.datetime.now(datetime.UTC), subject == issuer
    usage = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(by, hashes.SHA256())


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificates and private key."""
    folder = tmp_path_factory.mktemp("signing")
    key, authority = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = [
        certificate("studio", key, "authority", authority),
        certificate("authority", authority, "authority", authority),
    ]
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(pem)
    return folder / "chain.pem", folder / "key.pem"


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def test_a_signed_picture_has_the_same_pixels_and_a_changed_one_is_found_out(
    signing: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = signing
    write_untrained(tmp_path / "models" / "gan", "cgan", ImageShape(28, 28, 1, 10), width=4)
    draw = ["sample", "models/gan", "--n", "4", "--seed", "7", "--root", str(tmp_path)]
    plain, signed = tmp_path / "plain.png", tmp_path / "signed.png"
    app.main([*draw, "--out", str(plain)], standalone_mode=False)
    sign = [*draw, "--out", str(signed), "--sign", str(chain)]
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(InputError, match=f"name the file of the private key, PEM, in {KEY}"):
        app.main(sign, standalone_mode=False)
    monkeypatch.setenv(KEY, str(chain))
    with pytest.raises(InputError, match="no private key in PEM"):
        app.main(sign, standalone_mode=False)
    assert not signed.exists()

    monkeypatch.setenv(KEY, str(key))
    with pytest.raises(InputError, match="signs PNG"):
        app.main([*sign[:-3], str(tmp_path / "x.npz"), *sign[-2:]], standalone_mode=False)
    app.main(sign, standalone_mode=False)
    assert pixels(signed) == pixels(plain)
    mark = read_mark(plain)
    assert mark is not None
    assert read_mark(signed) == mark
    with c2pa.Reader("image/png", io.BytesIO(signed.read_bytes())) as reader:
        manifest = reader.get_active_manifest()
        state = reader.get_validation_state()
    assert state in ("Valid", "Trusted")
    assert manifest["signature_info"]["common_name"] == "studio"
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    assert assertions["c2pa.actions.v2"]["actions"][0]["digitalSourceType"] == DRAWN
    assert assertions["urn.atelier.mark"] == mark.model_dump(exclude_none=True)

    # a chain that C2PA does not take leaves what was there
    alone = tmp_path / "alone.pem"
    alone.write_bytes(b"-----BEGIN " + chain.read_bytes().split(b"-----BEGIN ")[2])
    before, beside = signed.read_bytes(), sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="--sign"):
        app.main([*sign[:-1], str(alone)], standalone_mode=False)
    assert signed.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == beside

    content = bytearray(before)
    content[-30] ^= 1  # of the pixels, or of what belongs to them
    with c2pa.Reader("image/png", io.BytesIO(content)) as reader:
        assert reader.get_validation_state() == "Invalid"
